"""What operators run, in place of what developers do."""

from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from tests.running import Running, running

REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
PAGES = ("/docs", "/openapi.json")


async def reflected(service: Running) -> str:
    """Ask what services there are; gives the refusal, if it is one."""
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    reflect: Any = service.channel.stream_stream(REFLECTION)
    call = reflect(timeout=5)
    try:
        await call.write(ask.SerializeToString())
        await call.read()
    except grpc.aio.AioRpcError as error:
        return error.code().name
    finally:
        call.cancel()
    return "OK"


@pytest.mark.parametrize("debug", [True, False])
async def test_what_helps_developers_is_off(
    database_url: str, redis_url: str, debug: bool
) -> None:
    """R36: no reflection, no document, no page, unless DEBUG is on."""
    async with running(database_url, redis_url, debug=debug) as service:
        assert await reflected(service) == ("OK" if debug else "UNIMPLEMENTED")
        for path in PAGES:
            page = await service.http.get(path)
            assert page.status_code == (200 if debug else 404)
        for path in ("/redoc", "/metrics", "/debug", "/"):
            assert (await service.http.get(path)).status_code == 404
