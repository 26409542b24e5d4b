"""GetUser, signed in and warm, against servers that do nothing but answer (P1, P3)."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import grpc
import httpx

from blatam.user.v1 import user_pb2
from tests.load.loader import Target, compare, pinned, serving
from tests.load.row import Row

Unary: TypeAlias = "grpc.UnaryUnaryMultiCallable[bytes, bytes]"
METHOD = "/blatam.user.v1.UserService/GetUser"
ANA = {
    "email": "ana@example.com",
    "username": "ana",
    "password": "C0rrect-horse!staple",
}
START_SECONDS = 60
# Signing up and in is rate limited, reading is not; the bench does the first once.
LIFTED: dict[str, list[object]] = {
    "blatam.user.v1.UserService/CreateUser": [],
    "blatam.auth.v1.AuthService/Login": [],
}


@dataclass(frozen=True, slots=True)
class Service:
    """A running service, and who is signed in to it."""

    process: int
    grpc: str
    rest: str
    user: int
    bearer: dict[str, str]


def rows() -> list[Row]:
    """Give P1 (gRPC) and P3 (REST), each measured in rounds with its peer."""
    with TemporaryDirectory(prefix="blatam-bench-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        with running(Path(folder)) as service:
            return [
                _over_grpc(service, Path(folder)),
                _over_rest(service, Path(folder)),
            ]


def _over_grpc(service: Service, folder: Path) -> Row:
    message = user_pb2.GetUserRequest(id=service.user).SerializeToString()
    answer = folder / "answer.bin"
    answer.write_bytes(_call(service, message))
    size = answer.stat().st_size
    with serving("tests.load.echo_grpc", answer) as (process, port):
        bare = f"http://127.0.0.1:{port}{METHOD}"
        ours = f"http://{service.grpc}{METHOD}"
        return _row(
            "P1 GetUser gRPC / bare grpc.aio echo",
            0.90,
            Target("bare", process, bare, size, message, service.bearer),
            Target("ours", service.process, ours, size, message, service.bearer),
        )


def _over_rest(service: Service, folder: Path) -> Row:
    path = f"/api/v1/users/{service.user}"
    plain = {**service.bearer, "accept-encoding": "identity"}
    got = httpx.get(f"http://{service.rest}{path}", headers=plain).raise_for_status()
    answer = folder / "answer.json"
    answer.write_bytes(got.content)
    size = len(got.content)
    with serving("tests.load.raw_asgi", answer) as (process, port):
        bare = f"http://127.0.0.1:{port}{path}"
        ours = f"http://{service.rest}{path}"
        return _row(
            "P3 GET /users/{id} / raw ASGI app",
            0.50,
            Target("bare", process, bare, size, None, plain),
            Target("ours", service.process, ours, size, None, plain),
        )


def _row(name: str, bar: float, bare: Target, ours: Target) -> Row:
    """Give the ratio of CPU per request, which counts, and in the notes the rest."""
    seen = compare(bare, ours)
    notes = (
        f"CPU {seen.bare.cpu_us:.0f} / {seen.ours.cpu_us:.0f} us per request; "
        f"{seen.bare.per_second:,.0f} / {seen.ours.per_second:,.0f} req/s, "
        f"ratio {seen.rate_ratio:.2f}"
    )
    return Row(name, seen.cpu_ratio, bar, unit="by CPU per request", notes=notes)


@contextmanager
def running(folder: Path) -> Iterator[Service]:
    """Start `academy up` on state of its own and sign somebody in."""
    grpc_at, rest_at = (f"127.0.0.1:{_free_port()}" for _ in range(2))
    settings = {
        "STATE_DIR": str(folder / "state"),
        "GRPC_LISTEN": grpc_at,
        "HTTP_LISTEN": rest_at,
        "DEBUG": "0",
        "LOG_LEVEL": "info",
        "RATE_LIMITS": json.dumps(LIFTED),
    }
    said = folder / "academy.log"
    command = [sys.executable, "-m", "server", "up"]
    with said.open("wb") as log:
        # Whatever servers the shell is set to are not to be loaded.
        theirs = {"DATABASE_URL", "REDIS_URL"}
        inherited = {k: v for k, v in os.environ.items() if k not in theirs}
        env = inherited | settings
        with pinned(command, env=env, stdout=log.fileno()) as server:
            _await(server, rest_at, said)
            yield _sign_in(server.pid, grpc_at, rest_at)


def _await(server: subprocess.Popen[bytes], address: str, said: Path) -> None:
    host, port = address.split(":")
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection((host, int(port)), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"`academy up` did not start:\n{said.read_text()[-3000:]}")


def _sign_in(process: int, grpc_at: str, rest_at: str) -> Service:
    login = {"identifier": ANA["username"], "password": ANA["password"]}
    with httpx.Client(base_url=f"http://{rest_at}/api/v1", timeout=30) as client:
        user = client.post("/users", json=ANA).raise_for_status().json()
        tokens = client.post("/auth/login", json=login).raise_for_status().json()
    bearer = {"authorization": f"Bearer {tokens['accessToken']}"}
    return Service(process, grpc_at, rest_at, int(user["id"]), bearer)


def _call(service: Service, message: bytes) -> bytes:
    with grpc.insecure_channel(service.grpc) as channel:
        stub: Unary = channel.unary_unary(METHOD)
        return stub(message, metadata=tuple(service.bearer.items()), timeout=30)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
