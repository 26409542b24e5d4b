"""Runs `academy` commands in child processes of one that has imported them already.

Importing takes more than a second, which every command would spend otherwise.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
TIMEOUT_SECONDS = 30


@dataclass(frozen=True, slots=True)
class CommandServer:
    """The process that starts the commands, one at a time."""

    process: subprocess.Popen[str]

    def run(
        self, command: tuple[str, ...], env: Mapping[str, str], typed: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run `academy` with these arguments and no other environment."""
        assert self.process.stdin
        assert self.process.stdout
        with TemporaryDirectory(prefix="blatam-command-") as name:
            folder = Path(name)
            (folder / "stdin").write_text(typed)
            request = {"command": command, "env": dict(env), "folder": name}
            print(json.dumps(request), file=self.process.stdin, flush=True)
            return subprocess.CompletedProcess(
                command,
                int(self.process.stdout.readline()),
                (folder / "stdout").read_text(),
                (folder / "stderr").read_text(),
            )


@contextmanager
def command_server() -> Iterator[CommandServer]:
    """Start the process; end it after the block."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.command_server"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "GRPC_ENABLE_FORK_SUPPORT": "false"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield CommandServer(process)


def _serve() -> None:
    """Fork for each line of standard input; write the exit codes."""
    from server.cli.main import main  # the tests' own process does without

    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os._exit(_run(main, **request))
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _run(
    main: Callable[[], None], command: list[str], env: dict[str, str], folder: str
) -> int:
    """Run the command in this child process; return its exit code."""
    signal.alarm(TIMEOUT_SECONDS)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        descriptor = os.open(f"{folder}/{name}", os.O_CREAT | os.O_RDWR, 0o600)
        os.dup2(descriptor, number)
    sys.stdin = os.fdopen(0)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["academy", *command]
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    _serve()
