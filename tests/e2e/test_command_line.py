"""`academy up` as people run it: the README's commands, Ctrl-C, kill -9."""

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
from typer.testing import CliRunner

from server.__main__ import cli
from tests.conftest import open_folder
from tests.processes import FREE_PORTS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SECONDS = 30


@dataclass(frozen=True, slots=True)
class Academy:
    """`academy up`, and everything that it started."""

    process: subprocess.Popen[str]
    env: dict[str, str]
    http: str
    grpc: str

    def family(self) -> list[psutil.Process]:
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def run(self, *command: str, typed: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command beside it, in its environment."""
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
        found = re.search(r"REST http://(\S+) +gRPC (\S+)", banner)
        assert found, "academy up has ended"
        http, grpc = found.groups()
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


def test_it_says_when_a_server_ends(state_dir: Path) -> None:
    """A Postgres that is gone for good ends it, with a sentence."""
    with academy_up(state_dir) as started:
        (postgres,) = [p for p in started.family() if "postgres" in p.name()][:1]
        postgres.kill()
        assert started.process.wait(SECONDS) == 1


def test_valkey_is_started_again(state_dir: Path) -> None:
    """What it holds may be lost: calls are answered meanwhile, and after."""
    with academy_up(state_dir) as started:
        (valkey,) = [p for p in started.family() if "valkey" in p.name()]
        valkey.kill()
        url = f"http://{started.http}/.well-known/jwks.json"
        until = time.monotonic() + SECONDS
        while not any("valkey" in p.name() for p in alive(started.family())):
            assert time.monotonic() < until
            assert httpx.get(url).status_code == 200
        assert httpx.get(url).status_code == 200


def alive(family: list[psutil.Process]) -> list[psutil.Process]:
    dead = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    return [p for p in family if p.is_running() and p.status() not in dead]


def gone(family: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(family, timeout=SECONDS)
    return not alive


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_it_leaves_nothing_behind(state_dir: Path, how: signal.Signals) -> None:
    """After Ctrl-C or kill -9 no process is left; the account is."""
    signup = {"email": "a@x.co", "username": "ana", "password": "Blue7horse"}
    with academy_up(state_dir) as started:
        url = f"http://{started.http}/api/v1/users"
        assert httpx.post(url, json=signup).status_code == 201
        family = started.family()
        assert len(family) > 2
        started.process.send_signal(how)
        expected = -how if how is signal.SIGKILL else 0
        assert started.process.wait(SECONDS) == expected
        assert gone(family)
    if how is not signal.SIGKILL:
        return  # the hardest end shows that nothing is lost
    with academy_up(state_dir) as started:
        url = f"http://{started.http}/api/v1/users"
        assert httpx.post(url, json=signup).json()["errorCode"] == "EMAIL_TAKEN"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_the_readme_runs(academy: Academy, tmp_path: Path) -> None:
    """Every command of the README's journey, in its order."""
    missing = [tool for tool in ("bash", "curl") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not on this machine: {', '.join(missing)}")
    script = "set -euo pipefail\n" + "\n".join(
        block
        for block in blocks("sh")
        if "grpcurl" not in block or shutil.which("grpcurl")
    )
    if not shutil.which("grpcurl"):
        # its block signs bea up, who logs in later
        script = script.replace("bea@example.com", "ana@example.com")
    done = academy.run("bash", "-c", pointed(script, academy))
    assert done.returncode == 0, done.stderr
    assert '"username":"ana"' in done.stdout
    assert '"hasNext":' in done.stdout
    assert "blatam.user.v1.UserService" in done.stdout
    assert "accessToken" in done.stdout
    (snippet,) = blocks("python")
    path = tmp_path / "snippet.py"
    path.write_text(pointed(snippet, academy))
    done = academy.run(sys.executable, str(path))
    assert (done.stdout, done.stderr) == ("ana\n", "")


def pointed(text: str, academy: Academy) -> str:
    text = text.replace("localhost:8080", academy.http)
    return text.replace("localhost:50051", academy.grpc)


def test_grpcurl(academy: Academy) -> None:
    """Listing, describing with options, and a call with a JSON body."""
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


def test_the_other_commands_find_it(academy: Academy) -> None:
    """doctor, migrate and admin work on what `up` started, without settings."""
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


def test_keys_are_listed_and_rotated(academy: Academy) -> None:
    """By another process; the server that runs learns it."""
    keys = (sys.executable, "-m", "server", "keys")
    done = academy.run(*keys, "rotate", "--force")
    listed = academy.run(*keys, "list")
    assert done.stdout == listed.stdout, done.stderr
    states = [line.split()[1] for line in listed.stdout.splitlines()]
    assert states == ["next", "active", "retired"]
    names = {line.split()[0] for line in listed.stdout.splitlines()}

    def published() -> bool:
        found = httpx.get(f"http://{academy.http}/.well-known/jwks.json").json()
        return {key["kid"] for key in found["keys"]} == names

    until(published)


def test_admins_meet_the_contracts_rules(academy: Academy) -> None:
    """R31: the command line is no way round them."""
    done = create_admin(academy, "İx y!", "no e-mail")
    assert done.returncode == 1
    assert "email: must be" in done.stderr
    assert "username: may hold only" in done.stderr
    assert "Traceback" not in done.stderr


def test_dead_letters_are_put_back(academy: Academy) -> None:
    """Listed without whom they are for; then delivered: a file each, in mail/."""
    signup = {"email": "zoe@x.co", "username": "zoe", "password": "Blue7horse"}
    httpx.post(f"http://{academy.http}/api/v1/users", json=signup)
    state = Path(academy.env["STATE_DIR"])
    mails = state / "mail"
    until(lambda: any("zoe@x.co" in file.read_text() for file in mails.glob("*.eml")))
    asyncio.run(dead_letter(json.loads((state / "endpoints.json").read_bytes())))
    before = len(list(mails.glob("*.eml")))
    listed = academy.run(sys.executable, "-m", "server", "outbox", "list")
    assert "mail.welcome" in listed.stdout
    assert "SMTPDataError\n1 dead" in listed.stdout
    assert "zoe" not in listed.stdout
    done = academy.run(sys.executable, "-m", "server", "outbox", "retry")
    assert done.stdout == "1 put back\n", done.stderr
    until(lambda: len(list(mails.glob("*.eml"))) > before)


async def dead_letter(urls: dict[str, str]) -> None:
    connection = await asyncpg.connect(urls["database_url"].replace("+asyncpg", ""))
    await connection.execute(
        "insert into outbox (kind, user_id, created_at, state, last_error)"
        " select 'mail.welcome', id, now(), 2, 'SMTPDataError' from users"
        " where username = 'zoe'"
    )
    await connection.close()


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def create_admin(
    academy: Academy, username: str, email: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server", "admin", "create"]
    command += ["--email", email, "--username", username]
    return academy.run(*command, typed="Green8horse\n")


def test_a_remote_edge(academy: Academy) -> None:
    """`academy edge` serves REST in front of a server elsewhere."""
    edge = subprocess.Popen(
        [sys.executable, "-m", "server", "edge", "--server", academy.grpc],
        cwd=ROOT,
        env=academy.env | FREE_PORTS,
        stderr=subprocess.PIPE,
    )
    try:
        told = orjson.loads(edge.stderr.readline() if edge.stderr else b"")
        assert told["event"] == "listening"
        for path in ("/.well-known/jwks.json", "/readyz"):
            assert httpx.get(f"http://{told['http']}{path}").status_code == 200
    finally:
        edge.terminate()
        edge.communicate(timeout=SECONDS)
    assert edge.returncode == 0


@pytest.mark.parametrize(
    ("command", "settings", "told"),
    [
        ("serve", {}, ["DATABASE_URL", "REDIS_URL", "SECRET_KEY"]),
        (
            "serve",
            {"SECRET_KEY": "short", "DATABASE_URL": "postgresql://h:port/d"},
            ["SECRET_KEY: must be at least 32", "DATABASE_URL: must", "REDIS_URL"],
        ),
        ("serve", {"DATABASE_URL_FILE": "/nope"}, ["DATABASE_URL_FILE cannot be read"]),
        ("up", {"TRUSTED_PROXIES": "foo"}, ["TRUSTED_PROXIES:"]),
        ("edge --server x:1", {"DEBUG": "1", "HTTP_LISTEN": "0.0.0.0:1"}, ["DEBUG on"]),
        (
            "up",
            {"SMTP_URL": "http://h", "MAIL_FROM": "ana\nBcc: b@x.co"},
            ["SMTP_URL: must be smtp://", "MAIL_FROM: must be an address"],
        ),
        ("serve", {"SECRET_KEY": "a" * 64}, ["SECRET_KEY: must be random"]),
        ("up", {"HTTP_LISTEN": "0.0.0.0:1"}, ["HTTP_LISTEN: with DEBUG on"]),
        (
            "up",
            {"GRPC_LISTEN": "x", "REFRESH_IDLE": "soon", "DATABASE_URL": "mysql://x"},
            ["GRPC_LISTEN", "REFRESH_IDLE", "DATABASE_URL"],
        ),
        (
            "up",
            {"RATE_LIMITS": '{"blatam.auth.v1.AuthService/Nothing": []}'},
            ["RATE_LIMITS: no such RPC"],
        ),
    ],
)
def test_faulty_settings_are_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    settings: dict[str, str],
    told: list[str],
) -> None:
    """R37: all faults at once, by name, no trace, and nothing is started."""
    monkeypatch.chdir(tmp_path)
    for name in ("DATABASE_URL", "REDIS_URL", "SECRET_KEY", "DEBUG"):
        monkeypatch.delenv(name, raising=False)
    env = {"STATE_DIR": str(tmp_path / "state"), **settings}
    done = CliRunner().invoke(cli, command.split(), env=env)
    assert done.exit_code == 1
    assert all(sentence in done.stderr for sentence in told), done.stderr
    assert isinstance(done.exception, SystemExit)
    assert not (tmp_path / "state").exists()


def test_an_unreachable_database_is_a_sentence(tmp_path: Path) -> None:
    """Not a trace; and the address, which may hold a password, is not told."""
    env = {
        "PATH": os.environ["PATH"],
        "SECRET_KEY": "0123456789abcdef" * 2,
        "DATABASE_URL": "postgresql://nobody:hunter2@127.0.0.1:1/none",
        "REDIS_URL": "redis://127.0.0.1:1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "server", "serve"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 1
    assert "cannot reach its data" in done.stderr
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stderr
