"""The metrics listener answers one page, whatever its clients send."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest

from server.composition.listeners import metrics
from server.composition.listeners.metrics import listening_metrics
from server.composition.listeners.sockets import CannotListen
from tests.running import running
from tests.silent_proxy import silent_proxy

LOOPBACK = "127.0.0.1:0"
PAGE = b"# HELP calls Calls.\n# TYPE calls counter\ncalls_total 1.0\n"
SLOW_SECONDS = 0.3
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def page() -> bytes:
    return PAGE


@asynccontextmanager
async def connected(opening: Awaitable[Connection]) -> AsyncIterator[Connection]:
    """Close the connection after the block."""
    reader, writer = await opening
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def connecting(port: int) -> Awaitable[Connection]:
    return asyncio.open_connection("127.0.0.1", port)


async def exchange(port: int, request: bytes) -> bytes:
    """Send bytes, and return everything until the listener closes the connection."""
    async with asyncio.timeout(10), connected(connecting(port)) as (reader, writer):
        writer.write(request)
        with suppress(ConnectionResetError):
            return await reader.read()
    return b""


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    """Wait until a condition holds that nothing announces."""
    async with asyncio.timeout(10):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def get(target: str = "/metrics", method: str = "GET") -> bytes:
    return f"{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


async def test_metrics_listener_serves_the_page() -> None:
    async with listening_metrics(LOOPBACK, page) as port:
        for target in ("/metrics", "/metrics?name[]=calls"):
            head, _, body = (await exchange(port, get(target))).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain;")
            assert body == PAGE
        answer = await exchange(port, get(method="HEAD"))
        assert f"Content-Length: {len(PAGE)}".encode() in answer
        assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (get("/"), b"404 Not Found"),
        (get("/metrics/"), b"404 Not Found"),
        (get("/debug", "POST"), b"404 Not Found"),
        (get("//metrics"), b"404 Not Found"),
        (get(method="POST"), b"405 Method Not Allowed"),
        (get(method="DELETE"), b"405 Method Not Allowed"),
        (b"\x16\x03\x01 TLS \r\n\r\n", b"400 Bad Request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"400 Bad Request"),
        (b"\r\n\r\n", b"400 Bad Request"),
    ],
)
async def test_metrics_listener_serves_nothing_else(
    request_bytes: bytes, status: bytes
) -> None:
    """R36: no other path, no other method, no other protocol."""
    async with listening_metrics(LOOPBACK, page) as port:
        answer = await exchange(port, request_bytes)
        assert answer.startswith(b"HTTP/1.1 " + status)
        assert PAGE not in answer


async def test_metrics_listener_bounds_the_size_of_a_request() -> None:
    async with listening_metrics(LOOPBACK, page) as port:
        head = b"GET /metrics HTTP/1.1\r\nX: " + b"x" * metrics.MAX_HEAD_SIZE * 4
        assert await exchange(port, head + b"\r\n\r\n") == b""


async def test_slow_scraper_delays_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sends nothing, one reads nothing: both are disconnected in time."""
    monkeypatch.setattr(metrics, "TIMEOUT_SECONDS", SLOW_SECONDS)

    async def large_page() -> bytes:
        return PAGE * 1_000_000

    async with (
        listening_metrics(LOOPBACK, large_page) as port,
        connected(connecting(port)) as (silent, _),
    ):
        with socket.create_connection(("127.0.0.1", port)) as lazy:
            lazy.sendall(get())
            assert (await exchange(port, get("/x"))).startswith(b"HTTP/1.1 404")
            async with asyncio.timeout(SLOW_SECONDS * 10):
                assert await silent.read() == b""
                await asyncio.sleep(SLOW_SECONDS)
            lazy.setblocking(False)
            received = 0
            with suppress(BlockingIOError, ConnectionResetError):
                while chunk := lazy.recv(2**20):
                    received += len(chunk)
            assert received < len(PAGE) * 1_000_000


async def test_metrics_listener_bounds_its_connections() -> None:
    """Clients whose requests are processed keep their connections."""
    finished = asyncio.Event()

    async def slow_page() -> bytes:
        await finished.wait()
        return PAGE

    async with (
        listening_metrics(LOOPBACK, slow_page) as port,
        AsyncExitStack() as stack,
    ):
        readers = []
        for _ in range(metrics.MAX_CONNECTIONS):
            connection = connected(connecting(port))
            reader, writer = await stack.enter_async_context(connection)
            writer.write(get())
            readers.append(reader)
        await until(lambda: is_refused(port))
        finished.set()
        for reader in readers:
            assert PAGE in await reader.read()


async def is_refused(port: int) -> bool:
    """Return whether a connection is closed before it has sent a request."""
    async with connected(connecting(port)) as (reader, _):
        with suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                with suppress(ConnectionResetError):
                    return await reader.read() == b""
                return True
    return False


async def test_idle_connections_to_metrics_lock_out_no_scraper() -> None:
    """The oldest idle connection is closed for a new one."""
    async with listening_metrics(LOOPBACK, page) as port, AsyncExitStack() as stack:
        readers = []
        for _ in range(metrics.MAX_CONNECTIONS):
            connection = connected(connecting(port))
            readers.append((await stack.enter_async_context(connection))[0])
        assert PAGE in await exchange(port, get())
        with suppress(ConnectionResetError):
            assert await readers[0].read() == b""
        assert not any(reader.at_eof() for reader in readers[1:])


async def test_failure_to_render_is_an_error_without_details() -> None:
    async def broken() -> bytes:
        raise RuntimeError("secret")

    async with listening_metrics(LOOPBACK, broken) as port:
        answer = await exchange(port, get())
        assert answer.startswith(b"HTTP/1.1 500 Internal Server Error")
        assert b"secret" not in answer


async def test_metrics_listener_serves_a_unix_socket(tmp_path: Path) -> None:
    """A socket that a killed process has left behind is replaced."""
    path = tmp_path / "worker.sock"
    for _ in range(2):
        async with listening_metrics(f"unix:{path}", page):
            opening = asyncio.open_unix_connection(path)
            async with connected(opening) as (reader, writer):
                writer.write(get())
                assert PAGE in await reader.read()


async def test_metrics_listener_names_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(CannotListen) as error:
            async with listening_metrics(address, page):
                pass
    assert str(error.value) == (
        f"cannot listen on {address}: Address already in use; "
        "stop the other process, or set METRICS_LISTEN=ADDRESS:PORT"
    )


async def test_metrics_listener_ends_open_connections() -> None:
    """A client that sends nothing does not delay the end of the process."""
    async with listening_metrics(LOOPBACK, page) as port:
        opening = connecting(port)
        reader, writer = await opening
        await until(lambda: exchange(port, get()))
    async with asyncio.timeout(1):
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
    writer.close()


async def test_metrics_listener_is_off_by_default() -> None:
    async with listening_metrics("", page) as port:
        assert port == 0


async def test_metrics_are_served_while_postgres_is_away(
    database_url: str, redis_url: str
) -> None:
    """A scrape waits for no store: the last figures of the outbox are served."""
    async with (
        silent_proxy(database_url) as proxy,
        running(proxy.url, redis_url) as service,
    ):

        async def backlog_is_known() -> bool:
            return b"academy_outbox_lag_seconds " in await service.render_metrics()

        async def is_degraded() -> float:
            scrape = await service.scrape()
            return scrape.total("academy_degraded", dependency="postgres")

        await until(backlog_is_known)
        await proxy.stop()
        await until(is_degraded)
        async with listening_metrics(LOOPBACK, service.render_metrics) as port:
            async with asyncio.timeout(1):
                answer = await exchange(port, get())
        assert b"academy_outbox_lag_seconds " in answer
        assert b'academy_degraded{dependency="postgres"} 1.0' in answer
