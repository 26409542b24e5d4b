"""GetUser over gRPC without the cache in the process, and without any cache (P2)."""

import sys

from blatam.user.v1 import user_pb2
from tests.load.loader import Target, serving
from tests.load.row import ResultRow
from tests.load.service import call_once, compared, running

METHOD = "/blatam.user.v1.UserService/GetUser"
LEVELS = {"redis": 0.60, "postgres": 0.45}


def rows() -> list[ResultRow]:
    """Return the ratio to a bare echo, with each store that answers."""
    return [_row(level, target) for level, target in LEVELS.items()]


def _row(level: str, target: float) -> ResultRow:
    command = [sys.executable, "-m", "tests.load.uncached_up", level]
    with running(command) as service:
        message = user_pb2.GetUserRequest(id=service.user).SerializeToString()
        answer = service.folder / "answer.bin"
        answer.write_bytes(call_once(service.grpc, METHOD, message, service.bearer))
        size = answer.stat().st_size
        with serving("tests.load.echo_grpc", answer) as (process, port):
            bare = f"http://127.0.0.1:{port}{METHOD}"
            ours = f"http://{service.grpc}{METHOD}"
            return compared(
                f"P2 GetUser from {level} / bare grpc.aio echo",
                target,
                Target("bare", process, bare, size, message, service.bearer),
                Target("ours", service.process, ours, size, message, service.bearer),
            )
