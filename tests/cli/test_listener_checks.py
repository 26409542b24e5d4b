"""Doctor's checks of the listeners: this service, another server, or none."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from fastapi import FastAPI
from grpc_health.v1 import health
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from server.cli.monitoring import listener_checks
from server.cli.monitoring.findings import Finding
from server.cli.monitoring.listener_checks import check_listeners
from server.composition.listeners.limits import http_protocol
from server.composition.listeners.serving import listening_http
from server.composition.listeners.sockets import bind_http, bound_address
from server.composition.tls import open_listener_tls
from server.config import load
from server.rpc.grpc_server import build_grpc_server
from tests.certificates import Files
from tests.mailbox import address_of, bound_socket
from tests.running import RunningService

Reply = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def check(setting: str, address: str, **settings: Any) -> Finding:
    values = {"grpc_listen": "127.0.0.1:1", "http_listen": "127.0.0.1:1"}
    values |= settings | {setting.lower(): address}
    findings = {f.check: f for f in await check_listeners(load(**values))}
    return findings[setting]


@asynccontextmanager
async def replying(reply: Reply) -> AsyncIterator[str]:
    server = await asyncio.start_server(reply, "127.0.0.1", 0)
    async with server:
        yield address_of(server.sockets[0])


async def test_doctor_reports_that_no_server_listens() -> None:
    with bound_socket() as silent:
        for setting in ("GRPC_LISTEN", "HTTP_LISTEN"):
            finding = await check(setting, address_of(silent))
            assert not finding.ok
            assert finding.result.endswith("no server is listening")


async def test_doctor_finds_the_server_at_grpc_listen(shared: RunningService) -> None:
    assert (await check("GRPC_LISTEN", shared.address)).ok


async def test_doctor_finds_the_server_at_http_listen(shared: RunningService) -> None:
    with bind_http("127.0.0.1:0") as listener:
        address = bound_address("127.0.0.1:0", listener)
        protocol = http_protocol(load())
        async with listening_http(shared.app, listener, protocol):
            assert (await check("HTTP_LISTEN", address)).ok


async def test_doctor_finds_a_server_with_tls(
    tmp_path: Path, shared: RunningService
) -> None:
    """Its certificate tells it from another one; a call may need a certificate."""
    files, other = Files(tmp_path / "own"), Files(tmp_path / "other")
    settings = files.settings("client_ca")
    tls = open_listener_tls(settings)
    server = build_grpc_server([])
    assert tls.server_credentials
    port = server.add_secure_port("127.0.0.1:0", tls.server_credentials)
    await server.start()
    address = f"127.0.0.1:{port}"
    assert (await check("GRPC_LISTEN", address, **files.environment())).ok
    finding = await check("GRPC_LISTEN", address, **other.environment())
    assert "its certificate is not that of TLS_CERT" in finding.result
    await server.stop(0)
    with bind_http("127.0.0.1:0") as listener:
        address = bound_address("127.0.0.1:0", listener)
        protocol = http_protocol(settings)
        async with listening_http(
            shared.app, listener, protocol, ssl_context=tls.ssl_context
        ):
            assert (await check("HTTP_LISTEN", address, **files.environment())).ok


async def test_doctor_names_another_grpc_server() -> None:
    server = grpc.aio.server()
    add_HealthServicer_to_server(health.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    finding = await check("GRPC_LISTEN", f"127.0.0.1:{port}")
    await server.stop(0)
    assert not finding.ok
    assert "another server is listening: a health check fails with NOT_FOUND" in (
        finding.result
    )
    assert "set GRPC_LISTEN to a free address" in finding.advice


async def say_hello(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reply as a mail server does."""
    writer.write(b"220 mail.example ESMTP\r\n")
    await writer.drain()
    writer.close()


@pytest.mark.parametrize("setting", ["GRPC_LISTEN", "HTTP_LISTEN"])
async def test_doctor_names_a_server_of_another_protocol(
    setting: str, tmp_path: Path
) -> None:
    async with replying(say_hello) as address:
        for tls in ({}, Files(tmp_path).environment()):
            finding = await check(setting, address, **tls)
            assert not finding.ok
            assert "another server is listening" in finding.result


async def test_doctor_names_another_http_server() -> None:
    app = FastAPI()
    with bind_http("127.0.0.1:0") as listener:
        address = bound_address("127.0.0.1:0", listener)
        async with listening_http(app, listener, http_protocol(load())):
            finding = await check("HTTP_LISTEN", address)
    assert not finding.ok
    assert finding.result.endswith("GET /livez returns 404")


async def test_doctor_reports_a_listener_that_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listener_checks, "TIMEOUT_SECONDS", 0.3)
    with bound_socket() as silent:
        silent.listen()
        for setting in ("GRPC_LISTEN", "HTTP_LISTEN"):
            finding = await check(setting, address_of(silent))
            assert not finding.ok
            assert finding.result.endswith("no answer within 0.3 s")
