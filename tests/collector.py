"""A collector of traces: receives OTLP over HTTP and keeps the spans."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

_OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


@dataclass(slots=True)
class Collector:
    """Responds to every request; one that is `silent` only reads."""

    silent: bool
    url: str = ""
    requests: list[ExportTraceServiceRequest] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    connected: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def text(self) -> str:
        """Everything that was received."""
        return "".join(map(str, self.requests))

    @property
    def spans(self) -> list[Span]:
        """The spans of all requests."""
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    async def span(self, name: str, trace_id: str) -> Span:
        """Wait for the span with this name in a trace."""
        async with asyncio.timeout(30):
            while True:
                for span in self.spans:
                    if (span.name, span.trace_id.hex()) == (name, trace_id):
                        return span
                await asyncio.sleep(0.02)

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Serve one connection."""
        self.connected.set()
        self.writers.append(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.partition("content-length: ")[2].split()[0])
                body = await reader.readexactly(length)
                if self.silent:
                    continue
                self.paths.add(head.split()[1])
                self.requests.append(ExportTraceServiceRequest.FromString(body))
                writer.write(_OK)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


@asynccontextmanager
async def collecting(*, silent: bool = False) -> AsyncIterator[Collector]:
    """Run a collector while the block runs."""
    collector = Collector(silent)
    server = await asyncio.start_server(collector.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    collector.url = f"http://{host}:{port}"
    try:
        yield collector
    finally:
        server.close()
        for writer in collector.writers:
            writer.transport.abort()
        await server.wait_closed()
