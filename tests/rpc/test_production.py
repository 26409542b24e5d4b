"""What DEBUG switches: reflection, the OpenAPI document and the docs page."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection_pb2

from server.rpc.standard_services.reflection import (
    ALPHA_NAME,
    V1_NAME,
    reflection_v1_file,
)
from tests.running import RunningService, running

PAGES = ("/docs", "/openapi.json")
USERS = "blatam.user.v1.UserService"
BUF = Path(sys.executable).parent / "buf"


async def list_services(service: RunningService, name: str) -> list[str] | str:
    """Return the services that reflection lists, or the status of its refusal."""
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    try:
        response = await ask(service, name, request.SerializeToString())
    except grpc.aio.AioRpcError as error:
        return error.code().name
    services = reflection_pb2.ServerReflectionResponse.FromString(response)
    return [each.name for each in services.list_services_response.service]


async def ask(service: RunningService, name: str, request: bytes) -> bytes:
    reflect: Any = service.channel.stream_stream(f"/{name}/ServerReflectionInfo")
    call = reflect(timeout=5)
    try:
        await call.write(request)
        return bytes(await call.read())
    finally:
        call.cancel()


@pytest.mark.parametrize("debug", [True, False])
async def test_developer_features_are_off_without_debug(
    database_url: str, redis_url: str, debug: bool
) -> None:
    """R36: no reflection, no document, no page, unless DEBUG is on."""
    async with running(database_url, redis_url, debug=debug) as service:
        for name in (V1_NAME, ALPHA_NAME):
            services = await list_services(service, name)
            if debug:
                assert {USERS, V1_NAME, ALPHA_NAME} <= set(services)
            else:
                assert services == "UNIMPLEMENTED"
        for path in PAGES:
            page = await service.http.get(path)
            assert page.status_code == (200 if debug else 404)
        for path in ("/redoc", "/metrics", "/debug", "/"):
            assert (await service.http.get(path)).status_code == 404


@pytest.mark.parametrize(
    "symbol",
    [
        USERS,
        f"{USERS}.GetUser",
        "blatam.user.v1.User",
        V1_NAME,
        f"{V1_NAME}.ServerReflectionInfo",
        ALPHA_NAME,
    ],
)
async def test_reflection_v1_describes_symbols(
    shared: RunningService, symbol: str
) -> None:
    """A client that has the v1 messages only can read every descriptor."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(reflection_v1_file())
    request, response = (
        message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"grpc.reflection.v1.ServerReflection{kind}")
        )
        for kind in ("Request", "Response")
    )
    wanted: Any = request(file_containing_symbol=symbol)
    answer: Any = response.FromString(
        await ask(shared, V1_NAME, wanted.SerializeToString())
    )
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(each)
        for each in answer.file_descriptor_response.file_descriptor_proto
    ]
    packages = {file.package for file in files}
    assert any(symbol.startswith(f"{package}.") for package in packages)


async def test_buf_curl_calls_through_reflection(shared: RunningService) -> None:
    """A command line client needs no proto files."""
    url = f"http://{shared.address}/blatam.auth.v1.AuthService/GetJsonWebKeySet"
    for protocol in ("grpc-v1", "grpc-v1alpha"):
        process = await asyncio.create_subprocess_exec(
            *(BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge"),
            *("--reflect", "--reflect-protocol", protocol, "-d", "{}", url),
            cwd="/",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert b'"keys"' in out, err.decode()
