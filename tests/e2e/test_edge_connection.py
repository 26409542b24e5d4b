"""The connection from `academy edge` to a server that vanishes."""

import asyncio

import grpc
import pytest

from edge.port import CallError
from server.composition.edge.upstream import connected_upstream
from tests.fault_proxy import FaultProxy, to_address
from tests.running import RunningService

METHOD = "/blatam.auth.v1.AuthService/GetJsonWebKeySet"
# A ping every 3 s, 1.5 s for its answer, and some time on a busy machine.
NOTICED_AFTER_SECONDS = 8
TIMEOUT_SECONDS = 30


async def test_server_that_vanished_is_noticed_before_the_deadline(
    shared: RunningService,
) -> None:
    """L8: the network drops every packet, and no connection is closed."""
    proxy = FaultProxy(to_address(shared.address))
    await proxy.start()
    try:
        async with connected_upstream(proxy.address, None) as upstream:
            await upstream.unary(METHOD, b"", metadata=(), timeout=TIMEOUT_SECONDS)
            proxy.silent = True
            with pytest.raises(CallError) as refused:
                async with asyncio.timeout(NOTICED_AFTER_SECONDS):
                    await upstream.unary(
                        METHOD, b"", metadata=(), timeout=TIMEOUT_SECONDS
                    )
            assert refused.value.code == grpc.StatusCode.UNAVAILABLE.value[0]
    finally:
        await proxy.stop()
