"""A load client for machines without h2load; it uses more CPU than the server.

`python -m tests.load.closed_loop` reads one JSON object from its standard input (url,
headers, message as hex or null, connections, streams, requests) and prints another.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import urlsplit

import grpc
import uvloop

Call = Callable[[], Awaitable[int]]
Unary: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send, and from how many concurrent callers."""

    url: str
    headers: dict[str, str]
    message: str | None
    connections: int
    streams: int
    requests: int


async def drive(plan: Plan) -> dict[str, float]:
    """Send all requests; each caller sends the next one after its answer."""
    remaining, received = plan.requests, 0

    async def caller(call: Call) -> None:
        nonlocal remaining, received
        while remaining > 0:
            remaining -= 1
            size = await call()  # `received += await` loses concurrent additions
            received += size

    calls = await (_http_calls(plan) if plan.message is None else _grpc_calls(plan))
    started = time.perf_counter()
    await asyncio.gather(*(caller(call) for call in calls))
    return {"seconds": time.perf_counter() - started, "bytes": received}


async def _grpc_calls(plan: Plan) -> list[Call]:
    """Return one call per stream; it raises unless the status is OK."""
    target = urlsplit(plan.url)
    message = bytes.fromhex(plan.message or "")
    reserved = {"content-type", "te"}
    metadata = [(k, v) for k, v in plan.headers.items() if k not in reserved]
    calls: list[Call] = []
    for _ in range(plan.connections):
        # Channels to one address share a connection by default.
        options = (("grpc.use_local_subchannel_pool", 1),)
        channel = grpc.aio.insecure_channel(target.netloc, options)
        stub: Unary = channel.unary_unary(target.path)

        async def call(stub: Unary = stub) -> int:
            return len(await stub(message, metadata=metadata))

        calls += [call] * plan.streams
    return calls


async def _http_calls(plan: Plan) -> list[Call]:
    """Return one call per connection; it raises unless the status is 200."""
    target = urlsplit(plan.url)
    head = [f"GET {target.path} HTTP/1.1", f"host: {target.netloc}"]
    head += [f"{name}: {value}" for name, value in plan.headers.items()]
    request = "\r\n".join([*head, "", ""]).encode()
    calls: list[Call] = []
    for _ in range(plan.connections * plan.streams):
        reader, writer = await asyncio.open_connection(target.hostname, target.port)

        async def call(
            reader: asyncio.StreamReader = reader, writer: asyncio.StreamWriter = writer
        ) -> int:
            writer.write(request)
            return await _read_answer(reader)

        calls.append(call)
    return calls


async def _read_answer(reader: asyncio.StreamReader) -> int:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if not head.startswith(b"http/1.1 200"):
        raise RuntimeError(head.decode())
    length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
    return len(await reader.readexactly(length))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(drive(Plan(**json.load(sys.stdin))))
    print(json.dumps(result))  # noqa: T201 - the parent reads it
