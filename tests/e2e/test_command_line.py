"""`academy up` as a process: the README's commands, Ctrl-C, kill -9."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import httpx
import orjson
import psutil
import pytest

from tests.command_server import CommandServer, command_server
from tests.conftest import open_folder
from tests.processes import FREE_PORTS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SECONDS = 30


@dataclass(frozen=True, slots=True)
class Academy:
    """A running `academy up`."""

    process: subprocess.Popen[str]
    env: dict[str, str]
    http: str
    grpc: str

    def processes(self) -> list[psutil.Process]:
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def run(self, *command: str, typed: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command in the same environment."""
        return subprocess.run(
            command,
            cwd=ROOT,
            env=self.env,
            input=typed,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )


@contextmanager
def academy_up(state: Path, **settings: str) -> Iterator[Academy]:
    paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {
        "PATH": paths,
        "HOME": os.environ.get("HOME", "/"),
        "STATE_DIR": str(state),
        **FREE_PORTS,
        **settings,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "server", "up"],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        banner = process.stdout.readline() if process.stdout else ""
        while process.poll() is None and "is up" not in banner:
            banner = process.stdout.readline() if process.stdout else ""
        addresses = re.search(r"REST http://(\S+) +gRPC (\S+)", banner)
        assert addresses, "academy up has ended"
        http, grpc = addresses.groups()
        env |= {"HTTP_LISTEN": http, "GRPC_LISTEN": grpc}
        yield Academy(process, env, http, grpc)
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


@pytest.fixture(scope="module")
def academy() -> Iterator[Academy]:
    with open_folder() as state, academy_up(state) as started:
        yield started


def test_up_exits_when_postgres_ends(state_dir: Path) -> None:
    with academy_up(state_dir) as started:
        (postgres,) = [p for p in started.processes() if "postgres" in p.name()][:1]
        postgres.kill()
        assert started.process.wait(SECONDS) == 1


def test_up_restarts_valkey_without_failing_calls(academy: Academy) -> None:
    (valkey,) = [p for p in alive(academy.processes()) if "valkey" in p.name()]
    valkey.kill()
    url = f"http://{academy.http}/.well-known/jwks.json"
    until = time.monotonic() + SECONDS
    while not any("valkey" in p.name() for p in alive(academy.processes())):
        assert time.monotonic() < until
        assert httpx.get(url).status_code == 200
    assert httpx.get(url).status_code == 200


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    dead = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    return [p for p in processes if p.is_running() and p.status() not in dead]


def have_ended(processes: list[psutil.Process]) -> bool:
    _, running = psutil.wait_procs(processes, timeout=SECONDS)
    return not running


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_up_leaves_no_process_and_keeps_data(
    state_dir: Path, number: signal.Signals
) -> None:
    """After Ctrl-C or kill -9 every child has ended; accounts are still there."""
    signup = {"email": "a@x.co", "username": "ana", "password": "Blue7horse"}
    with academy_up(state_dir) as started:
        url = f"http://{started.http}/api/v1/users"
        assert httpx.post(url, json=signup).status_code == 201
        processes = started.processes()
        assert len(processes) > 2
        started.process.send_signal(number)
        expected = -number if number is signal.SIGKILL else 0
        assert started.process.wait(SECONDS) == expected
        assert have_ended(processes)
    if number is not signal.SIGKILL:
        return  # one restart is enough: after kill -9
    with academy_up(state_dir) as started:
        url = f"http://{started.http}/api/v1/users"
        assert httpx.post(url, json=signup).json()["errorCode"] == "EMAIL_TAKEN"


def readme_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_readme_commands_run_in_order(academy: Academy, tmp_path: Path) -> None:
    missing = [tool for tool in ("bash", "curl") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not on this machine: {', '.join(missing)}")
    script = "set -euo pipefail\n" + "\n".join(
        block
        for block in readme_blocks("sh")
        if "grpcurl" not in block or shutil.which("grpcurl")
    )
    if not shutil.which("grpcurl"):
        # the block with grpcurl signs bea up, who logs in later
        script = script.replace("bea@example.com", "ana@example.com")
    done = academy.run("bash", "-c", with_addresses(script, academy))
    assert done.returncode == 0, done.stderr
    assert '"username":"ana"' in done.stdout
    assert '"hasNext":' in done.stdout
    assert "blatam.user.v1.UserService" in done.stdout
    assert "accessToken" in done.stdout
    (snippet,) = readme_blocks("python")
    path = tmp_path / "snippet.py"
    path.write_text(with_addresses(snippet, academy))
    done = academy.run(sys.executable, str(path))
    assert (done.stdout, done.stderr) == ("ana\n", "")


def with_addresses(text: str, academy: Academy) -> str:
    text = text.replace("localhost:8080", academy.http)
    return text.replace("localhost:50051", academy.grpc)


def test_grpcurl_lists_describes_and_calls(academy: Academy) -> None:
    if shutil.which("grpcurl") is None:
        pytest.skip("grpcurl is not on this machine (it needs Go to install)")

    def grpcurl(*arguments: str) -> str:
        return academy.run("grpcurl", "-plaintext", *arguments).stdout

    assert "blatam.auth.v1.AuthService" in grpcurl(academy.grpc, "list")
    method = "blatam.user.v1.UserService.CreateUser"
    described = grpcurl(academy.grpc, "describe", method)
    assert "ACCESS_PUBLIC" in described
    assert 'post: "/api/v1/users"' in described
    message = grpcurl(academy.grpc, "describe", "blatam.user.v1.CreateUserRequest")
    assert "email.form" in message
    body = '{"email": "g@x.co", "username": "gus", "password": "Blue7horse"}'
    called = "blatam.user.v1.UserService/CreateUser"
    assert '"username": "gus"' in grpcurl("-d", body, academy.grpc, called)


def test_commands_find_the_servers_of_up(academy: Academy) -> None:
    """doctor, migrate and admin work without settings while `up` runs."""
    doctor = academy.run(sys.executable, "-m", "server", "doctor", "--json")
    assert doctor.returncode == 0, doctor.stdout
    assert '"check": "schema"' in doctor.stdout
    assert (
        Path(academy.env["STATE_DIR"]) / "secret_key"
    ).read_text() not in doctor.stdout
    migrated = academy.run(sys.executable, "-m", "server", "migrate")
    assert migrated.returncode == 0, migrated.stderr
    made = create_admin(academy, "root", "root@x.co")
    assert made.returncode == 0, made.stderr
    login = {"identifier": "root", "password": "Green8horse"}
    tokens = httpx.post(f"http://{academy.http}/api/v1/auth/login", json=login).json()
    headers = {"authorization": f"Bearer {tokens['accessToken']}"}
    me = httpx.get(f"http://{academy.http}/api/v1/users/me", headers=headers).json()
    assert me["role"] == "ROLE_ADMIN"


@pytest.fixture(scope="module")
def commands() -> Iterator[CommandServer]:
    with command_server() as server:
        yield server


def test_key_rotation_reaches_a_running_server(
    academy: Academy, commands: CommandServer
) -> None:
    done = commands.run(("keys", "rotate", "--force"), academy.env)
    listed = commands.run(("keys", "list"), academy.env)
    assert done.stdout == listed.stdout, done.stderr
    states = [line.split()[1] for line in listed.stdout.splitlines()]
    assert states == ["next", "active", "retired"]
    names = {line.split()[0] for line in listed.stdout.splitlines()}

    def published() -> bool:
        key_set = httpx.get(f"http://{academy.http}/.well-known/jwks.json").json()
        return {key["kid"] for key in key_set["keys"]} == names

    until(published)


def test_admin_create_enforces_the_rules_of_sign_up(
    academy: Academy, commands: CommandServer
) -> None:
    """R31: the command line applies the field rules of the contract."""
    options = ("--email", "no e-mail", "--username", "İx y!")
    command = ("admin", "create", *options)
    done = commands.run(command, academy.env, "Green8horse\n")
    assert done.returncode == 1
    assert "email: must be" in done.stderr
    assert "username: must contain only" in done.stderr
    assert "Traceback" not in done.stderr


def test_dead_letters_are_listed_and_retried(
    academy: Academy, commands: CommandServer
) -> None:
    """The list names no recipient; a retry writes the e-mail."""
    signup = {"email": "zoe@x.co", "username": "zoe", "password": "Blue7horse"}
    httpx.post(f"http://{academy.http}/api/v1/users", json=signup)
    state = Path(academy.env["STATE_DIR"])
    mails = state / "mail"
    until(lambda: any("zoe@x.co" in file.read_text() for file in mails.glob("*.eml")))
    asyncio.run(add_dead_letter(json.loads((state / "endpoints.json").read_bytes())))
    links = f"http://{academy.http}/"  # the bound port: HTTP_LISTEN ends with :0
    assert all(links in file.read_text() for file in mails.glob("*.welcome.eml"))
    before = len(list(mails.glob("*.eml")))
    listed = commands.run(("outbox", "list"), academy.env)
    assert "mail.welcome" in listed.stdout
    assert "SMTPDataError\ndead letters: 1" in listed.stdout
    assert "zoe" not in listed.stdout
    done = commands.run(("outbox", "retry", "999999", "999998"), academy.env)
    assert done.returncode == 1
    assert done.stderr == "not dead letters: 999998, 999999\n"
    too_large = commands.run(("outbox", "retry", "9" * 20), academy.env)
    assert too_large.returncode == 2
    assert "Invalid value" in too_large.stderr
    assert "Traceback" not in too_large.stderr
    done = commands.run(("outbox", "retry"), academy.env)
    assert done.stdout == "dead letters queued again: 1\n", done.stderr
    until(lambda: len(list(mails.glob("*.eml"))) > before)


async def add_dead_letter(urls: dict[str, str]) -> None:
    connection = await asyncpg.connect(urls["database_url"].replace("+asyncpg", ""))
    await connection.execute(
        "insert into outbox (kind, user_id, created_at, state, last_error)"
        " select 'mail.welcome', id, now(), 2, 'SMTPDataError' from users"
        " where username = 'zoe'"
    )
    await connection.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def create_admin(
    academy: Academy, username: str, email: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server", "admin", "create"]
    command += ["--email", email, "--username", username]
    return academy.run(*command, typed="Green8horse\n")


def test_edge_serves_rest_in_front_of_a_server(academy: Academy) -> None:
    edge = subprocess.Popen(
        [sys.executable, "-m", "server", "edge", "--server", academy.grpc],
        cwd=ROOT,
        env=academy.env | FREE_PORTS,
        stderr=subprocess.PIPE,
    )
    try:
        line = orjson.loads(edge.stderr.readline() if edge.stderr else b"")
        assert line["event"] == "listening"
        for path in ("/.well-known/jwks.json", "/readyz"):
            assert httpx.get(f"http://{line['http']}{path}").status_code == 200
    finally:
        edge.terminate()
        edge.communicate(timeout=SECONDS)
    assert edge.returncode == 0
