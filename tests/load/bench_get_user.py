"""GetUser, signed in and cached, against servers that send constants (P1, P3)."""

import httpx

from blatam.user.v1 import user_pb2
from tests.load.loader import Target, serving
from tests.load.row import ResultRow
from tests.load.service import Service, call_once, compared, rest_target, running

METHOD = "/blatam.user.v1.UserService/GetUser"


def rows() -> list[ResultRow]:
    """Return P1 (gRPC) and P3 (REST), each measured in rounds with its peer."""
    with running() as service:
        return [_over_grpc(service), _over_rest(service)]


def _over_grpc(service: Service) -> ResultRow:
    message = user_pb2.GetUserRequest(id=service.user).SerializeToString()
    answer = service.folder / "answer.bin"
    answer.write_bytes(call_once(service.grpc, METHOD, message, service.bearer))
    size = answer.stat().st_size
    with serving("tests.load.echo_grpc", answer) as (process, port):
        bare = f"http://127.0.0.1:{port}{METHOD}"
        ours = f"http://{service.grpc}{METHOD}"
        return compared(
            "P1 GetUser gRPC / bare grpc.aio echo",
            0.85,
            Target("bare", process, bare, size, message, service.bearer),
            Target("ours", service.process, ours, size, message, service.bearer),
        )


def _over_rest(service: Service) -> ResultRow:
    url = f"http://{service.rest}{service.path}"
    ours = rest_target("ours", service.process, url, service.bearer)
    answer = service.folder / "answer.json"
    answer.write_bytes(httpx.get(url, headers=ours.headers).content)
    with serving("tests.load.raw_asgi", answer) as (process, port):
        static = f"http://127.0.0.1:{port}{service.path}"
        return compared(
            "P3 GET /users/{id} / raw ASGI app",
            0.30,
            rest_target("bare", process, static, service.bearer),
            ours,
        )
