"""Durable Postgres and Valkey in a process of their own, to be killed and restarted.

`python -m tests.load.faults.stores FOLDER` starts the servers that the lines of its
standard input name and answers each line with the server's URL. It ends, and stops
both, at the end of its input.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil

from server.embedded.servers import EmbeddedServers

ROOT = Path(__file__).parents[3]
START_SECONDS = 90


class Stores:
    """The servers: their URLs, their processes and the signals that fail them."""

    def __init__(self, helper: asyncio.subprocess.Process) -> None:
        self._helper = helper
        self.database_url = ""
        self.redis_url = ""

    async def start_postgres(self) -> None:
        """Start Postgres; return once it accepts connections."""
        self.database_url = await self._start("postgres")

    async def start_valkey(self) -> None:
        """Start Valkey; return once it answers."""
        self.redis_url = await self._start("valkey")

    async def _start(self, name: str) -> str:
        assert self._helper.stdin
        assert self._helper.stdout
        self._helper.stdin.write(f"{name}\n".encode())
        async with asyncio.timeout(START_SECONDS):
            return (await self._helper.stdout.readline()).decode().strip()

    def signal_postgres(self, number: signal.Signals) -> None:
        """Send a signal to Postgres and all its backends."""
        self._signal("postgres", number)

    def signal_backends(self, number: signal.Signals) -> None:
        """Send a signal to the processes that serve connections."""
        for process in self._processes("postgres"):
            with suppress(psutil.NoSuchProcess):
                if "127.0.0.1" in (line := " ".join(process.cmdline())) or (
                    " [local] " in line
                ):
                    process.send_signal(number)

    def signal_valkey(self, number: signal.Signals) -> None:
        """Send a signal to Valkey."""
        self._signal("valkey-server", number)

    def _signal(self, name: str, number: signal.Signals) -> None:
        for process in self._processes(name):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _processes(self, name: str) -> list[psutil.Process]:
        children = psutil.Process(self._helper.pid).children()
        mains = [child for child in children if _is_running(child, name)]
        return [*mains, *(p for main in mains for p in main.children(recursive=True))]


def _is_running(process: psutil.Process, name: str) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.name() == name and process.status() != psutil.STATUS_ZOMBIE
    return False


@asynccontextmanager
async def open_stores(folder: Path) -> AsyncIterator[Stores]:
    """Start both servers; stop them when the block ends."""
    helper = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__, str(folder)),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    stores = Stores(helper)
    try:
        await stores.start_postgres()
        await stores.start_valkey()
        yield stores
    finally:
        stores.signal_postgres(signal.SIGCONT)
        stores.signal_valkey(signal.SIGCONT)
        assert helper.stdin
        helper.stdin.close()
        await helper.wait()


def main() -> None:
    """Start the servers that standard input names."""
    os.setpgid(0, 0)  # Ctrl-C in the terminal reaches the owner, which stops this
    servers = EmbeddedServers(Path(sys.argv[1]))
    starts = {"postgres": servers.start_postgres, "valkey": servers.start_valkey}
    try:
        for line in sys.stdin:
            _reap_children()
            print(starts[line.strip()](), flush=True)  # noqa: T201
    finally:
        servers.stop()


def _reap_children() -> None:
    """Reap killed servers: to Postgres, a zombie is a server that still runs."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    main()
