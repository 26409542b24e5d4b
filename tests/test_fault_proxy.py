"""The TCP proxy of the reliability experiments adds the faults that are set."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.fault_proxy import FaultProxy, fault_proxy, to_address

MESSAGE = b"x" * 1000


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


@pytest_asyncio.fixture
async def proxy() -> AsyncIterator[FaultProxy]:
    """Return a proxy in front of a server that sends back what it receives."""
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with fault_proxy(to_address(f"127.0.0.1:{port}")) as started:
        yield started
    server.close()


async def exchange(proxy: FaultProxy) -> float:
    """Send a message and receive it again; return the seconds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        started = time.monotonic()
        writer.write(MESSAGE)
        assert await reader.readexactly(len(MESSAGE)) == MESSAGE
        return time.monotonic() - started
    finally:
        writer.transport.abort()


async def until_connections(proxy: FaultProxy, number: int) -> None:
    async with asyncio.timeout(5):
        while proxy.connections != number:  # noqa: ASYNC110 - a state of the proxy
            await asyncio.sleep(0.01)


async def test_fault_proxy_delays_and_limits_bytes(proxy: FaultProxy) -> None:
    """Each direction is delayed."""
    proxy.latency = 0.05
    assert await exchange(proxy) >= 0.1
    proxy.latency, proxy.bytes_per_second = 0, 20_000
    assert await exchange(proxy) >= 0.1


async def test_fault_proxy_resets_connections(proxy: FaultProxy) -> None:
    """After a number of bytes, at a text, and all at once."""
    proxy.reset_after = len(MESSAGE) - 1
    with pytest.raises(ConnectionResetError):
        await exchange(proxy)
    proxy.reset_after, proxy.reset_on = None, b"xxx"
    with pytest.raises(ConnectionResetError):
        await exchange(proxy)
    assert proxy.resets == 2
    proxy.reset_on, proxy.silent = b"", True
    await until_connections(proxy, 0)
    waiting = asyncio.create_task(exchange(proxy))
    await until_connections(proxy, 1)
    await proxy.reset()
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await waiting


async def test_fault_proxy_drops_packets_until_it_forwards_again(
    proxy: FaultProxy,
) -> None:
    proxy.silent = True
    waiting = asyncio.create_task(exchange(proxy))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    proxy.silent = False
    await waiting
