"""The client policy: it covers the contract, and calls survive a server that stops."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest

from server.composition.edge.upstream import channel_options
from server.composition.listeners.serving import listening_grpc
from server.rpc import contract
from server.rpc.grpc_server import build_grpc_server

CONFIG = json.loads(contract.service_config())
GET_USER = "/blatam.user.v1.UserService/GetUser"
CREATE_SERVICE_KEY = "/blatam.auth.v1.AuthService/CreateServiceKey"
CALLERS = 20
Handler = Callable[[bytes, Any], Awaitable[bytes]]


def methods_with_retries(config: Any) -> Counter[str]:
    return Counter(
        f"/{name['service']}/{name['method']}"
        for method_config in config["methodConfig"]
        if "retryPolicy" in method_config
        for name in method_config["name"]
    )


def test_service_config_names_each_method_once() -> None:
    names = Counter(
        f"/{name['service']}/{name['method']}"
        for method_config in CONFIG["methodConfig"]
        for name in method_config["name"]
    )
    assert names == Counter(method.path for method in contract.methods())


def test_service_config_retries_what_may_be_repeated() -> None:
    """All but the methods that add something each time, or use something up."""
    every = {method.path for method in contract.methods()}
    once = (
        *("RotateSigningKey", "CreateServiceKey", "ImpersonateUser"),
        *("CompleteLogin", "Reauthenticate", "LoginWithCode"),
        *("CreateTotpFactor", "ConfirmTotpFactor", "RegenerateRecoveryCodes"),
        *("CreatePasskey", "ConfirmPasskey"),
        *("BeginPasskeyLogin", "CompletePasskeyLogin"),
        *("BeginFederatedLogin", "CompleteFederatedLogin"),
    )
    service = "/blatam.auth.v1.AuthService"
    assert every - methods_with_retries(CONFIG).keys() == {
        f"{service}/{name}" for name in once
    }


def test_edge_retries_no_method_with_request_id() -> None:
    """Its client may have set no request_id, and a second execution would count."""
    (config,) = [json.loads(v) for k, v in channel_options() if "config" in k]
    with_request_id = {m.path for m in contract.methods() if m.policy.idempotent}
    assert with_request_id
    expected = methods_with_retries(CONFIG).keys() - with_request_id
    assert methods_with_retries(config).keys() == expected


class Service(grpc.GenericRpcHandler):
    """Answers every method by one function."""

    def __init__(self, handler: Handler) -> None:
        self._handler: Any = grpc.unary_unary_rpc_method_handler(handler)

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """Return the handler, except for health checks: every server is healthy."""
        method = str(details.method)
        return None if method.startswith("/grpc.health") else self._handler


async def answer(request: bytes, _context: Any) -> bytes:
    await asyncio.sleep(0.001)
    return request


@asynccontextmanager
async def channel_to(*ports: int) -> AsyncIterator[grpc.aio.Channel]:
    target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
    options = [("grpc.service_config", contract.service_config())]
    async with grpc.aio.insecure_channel(target, options) as channel:
        yield channel


async def test_service_config_hides_a_server_that_stops() -> None:
    """Calls of many callers go to the other server; none fails."""
    async with AsyncExitStack() as servers, AsyncExitStack() as second:
        stay = await servers.enter_async_context(
            listening_grpc(build_grpc_server([Service(answer)]), "127.0.0.1:0")
        )
        leave = await second.enter_async_context(
            listening_grpc(build_grpc_server([Service(answer)]), "127.0.0.1:0")
        )
        async with channel_to(stay, leave) as channel:
            call: Any = channel.unary_unary(GET_USER)
            stopped = asyncio.Event()
            answers = 0

            async def caller() -> None:
                nonlocal answers
                while not stopped.is_set():
                    assert await call(b"request", timeout=20) == b"request"
                    answers += 1

            callers = [asyncio.create_task(caller()) for _ in range(CALLERS)]
            await asyncio.sleep(0.2)
            before = answers
            assert before
            await second.aclose()
            await asyncio.sleep(0.2)
            stopped.set()
            await asyncio.gather(*callers)
            assert answers > before


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED]
)
@pytest.mark.parametrize(("path", "attempts"), [(GET_USER, 2), (CREATE_SERVICE_KEY, 1)])
async def test_service_config_repeats_calls_by_method(
    code: grpc.StatusCode, path: str, attempts: int
) -> None:
    """A call with either status is repeated, if its method may be repeated."""
    calls = 0

    async def fail_once(request: bytes, context: Any) -> bytes:
        nonlocal calls
        calls += 1
        if calls == 1:
            await context.abort(code, "stopping")
        return request

    server = build_grpc_server([Service(fail_once)])
    async with (
        listening_grpc(server, "127.0.0.1:0") as port,
        channel_to(port) as channel,
    ):
        call: Any = channel.unary_unary(path)
        if attempts == 1:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call(b"", timeout=20)
            assert error.value.code() is code
        else:
            await call(b"", timeout=20)
    assert calls == attempts
