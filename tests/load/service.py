"""Starts the service and its peers for the benchmarks."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import grpc
import httpx
import psutil

from tests.load.loader import Target, compare, started
from tests.load.row import ResultRow

Unary: TypeAlias = "grpc.UnaryUnaryMultiCallable[bytes, bytes]"
ANA = {
    "email": "ana@example.com",
    "username": "ana",
    "password": "C0rrect-horse!staple",
}
START_SECONDS = 180
# Lifted so that benchmarks can sign up and log in as often as they need.
LIFTED: dict[str, list[object]] = {
    "blatam.user.v1.UserService/CreateUser": [],
    "blatam.auth.v1.AuthService/Login": [],
    "blatam.auth.v1.AuthService/RefreshToken": [],
}
WORKER_ARGUMENT = "server.cli.workers.worker"
ACADEMY = [sys.executable, "-m", "server"]


@dataclass(frozen=True, slots=True)
class Service:
    """A running service and a signed-in user."""

    process: int
    grpc: str
    rest: str
    user: int
    bearer: dict[str, str]
    folder: Path

    @property
    def path(self) -> str:
        """The REST path of the signed-in user."""
        return f"/api/v1/users/{self.user}"

    @property
    def database(self) -> str:
        """The URL of its Postgres."""
        urls = json.loads((self.folder / "state" / "endpoints.json").read_bytes())
        return str(urls["database_url"])


@contextmanager
def running(
    command: Sequence[str] = (*ACADEMY, "up"),
    *,
    pinned: bool = True,
    workers: int = 1,
    kept: Path | None = None,
) -> Iterator[Service]:
    """Start `academy up` and sign a user in.

    Its state folder is a new one, or in the folder `kept`, which stays afterwards.
    """
    with TemporaryDirectory(prefix="blatam-bench-", dir="/tmp") as name:
        folder = kept or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)  # Postgres runs under another account
        grpc, rest = free_address(), free_address()
        settings = {
            "STATE_DIR": str(folder / "state"),
            "GRPC_LISTEN": grpc,
            "HTTP_LISTEN": rest,
            "DEBUG": "0",
            "PUBLIC_URL": f"http://localhost:{rest.rpartition(':')[2]}",
            "LOG_LEVEL": "info",
            "WORKERS": str(workers),
            "RATE_LIMITS": json.dumps(LIFTED),
            "MAX_SESSIONS": "1000",  # callers log in again and again
        }
        log = folder / "academy.log"
        with listening(command, rest, log, settings, pinned=pinned) as process:
            user, bearer = sign_in(rest)
            yield Service(process, grpc, rest, user, bearer, folder)


@contextmanager
def listening(
    command: Sequence[str],
    address: str,
    log: Path,
    settings: Mapping[str, str],
    *,
    pinned: bool = True,
) -> Iterator[int]:
    """Run a command, on the server's core by default; yield its process id.

    It listens by then.
    """
    # The servers of the shell's environment must not be loaded.
    inherited = {"DATABASE_URL", "REDIS_URL"}
    env = {k: v for k, v in os.environ.items() if k not in inherited} | dict(settings)
    with (
        log.open("wb") as output,
        started(command, env=env, stdout=output.fileno(), pinned=pinned) as server,
    ):
        wait_until_listening(server, address, log)
        yield server.pid


def rest_target(
    name: str, process: int, url: str, headers: Mapping[str, str]
) -> Target:
    """Return a GET to load, with the size of its present answer."""
    plain = {**headers, "accept-encoding": "identity"}
    response = httpx.get(url, headers=plain, timeout=30).raise_for_status()
    return Target(name, process, url, len(response.content), None, plain)


def compared(
    name: str, target: float, bare: Target, ours: Target, note: str = ""
) -> ResultRow:
    """Return the ratio of CPU per request; the notes have the other measurements."""
    comparison = compare(bare, ours)
    notes = (
        f"CPU {comparison.bare.cpu_us:.0f} / {comparison.ours.cpu_us:.0f} us per "
        f"request; "
        f"{comparison.bare.per_second:,.0f} / {comparison.ours.per_second:,.0f} req/s, "
        f"ratio {comparison.rate_ratio:.2f}"
    )
    if note:
        notes += f"; {note}"
    return ResultRow(
        name, comparison.cpu_ratio, target, unit="by CPU per request", notes=notes
    )


def free_address() -> str:
    """Return a loopback address on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def wait_until_listening(
    server: subprocess.Popen[bytes], address: str, log: Path
) -> None:
    """Wait until a server accepts connections. Raises RuntimeError with its log."""
    host, port = address.split(":")
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection((host, int(port)), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"{server.args!r} did not start:\n{log.read_text()[-3000:]}")


def call_once(
    address: str, method: str, message: bytes, headers: Mapping[str, str]
) -> bytes:
    """Return the response of a gRPC call."""
    with grpc.insecure_channel(address) as channel:
        stub: Unary = channel.unary_unary(method)
        return stub(message, metadata=tuple(headers.items()), timeout=30)


def sign_in(rest: str) -> tuple[int, dict[str, str]]:
    """Create a user unless it exists; return the id and the header of its token."""
    login = {"identifier": ANA["username"], "password": ANA["password"]}
    with httpx.Client(base_url=f"http://{rest}/api/v1", timeout=30) as client:
        created = client.post("/users", json=ANA)
        if created.status_code != httpx.codes.CONFLICT:
            created.raise_for_status()
        tokens = client.post("/auth/login", json=login).raise_for_status().json()
        bearer = {"authorization": f"Bearer {tokens['accessToken']}"}
        user = client.get("/users/me", headers=bearer).raise_for_status().json()
    return int(user["id"]), bearer


def serving_processes(pid: int) -> tuple[int, ...]:
    """Return the workers of a service, or the service itself if it has none."""
    children = psutil.Process(pid).children()
    workers = tuple(c.pid for c in children if WORKER_ARGUMENT in c.cmdline())
    return workers or (pid,)
