"""A minimal SMTP server that takes a fixed time for each e-mail and discards it.

It does less than aiosmtpd, so that the benchmark measures the sender.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

_MESSAGE_ID = re.compile(rb"(?im)^Message-ID: (\S+)")


@dataclass(slots=True)
class SmtpSink:
    """Counts the e-mails, by Message-ID, and the connections."""

    seconds_per_mail: float
    url: str = ""
    accepted_at: list[float] = field(default_factory=list)
    message_ids: set[bytes] = field(default_factory=set)
    connections: int = 0

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Answer one client until it disconnects."""
        self.connections += 1
        writer.write(b"220 sink\r\n")
        try:
            while line := await reader.readline():
                command = line[:4].upper()
                if command == b"DATA":
                    writer.write(b"354 go on\r\n")
                    await self._take(await reader.readuntil(b"\r\n.\r\n"))
                elif command == b"EHLO":
                    writer.write(b"250-sink\r\n250 PIPELINING\r\n")
                    continue
                writer.write(b"250 OK\r\n")
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _take(self, content: bytes) -> None:
        await asyncio.sleep(self.seconds_per_mail)
        self.accepted_at.append(time.perf_counter())
        if match := _MESSAGE_ID.search(content):
            self.message_ids.add(match[1])

    async def filled(self, count: int, seconds: float) -> None:
        """Wait until so many e-mails were accepted. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while len(self.accepted_at) < count:  # noqa: ASYNC110 - an event costs CPU
                await asyncio.sleep(0.05)

    def rate(self) -> float:
        """Return the e-mails a second, from the first to the last."""
        seconds = self.accepted_at[-1] - self.accepted_at[0]
        return (len(self.accepted_at) - 1) / seconds


@asynccontextmanager
async def smtp_sink(seconds_per_mail: float) -> AsyncIterator[SmtpSink]:
    """Serve SMTP on a free loopback port."""
    sink = SmtpSink(seconds_per_mail)
    server = await asyncio.start_server(sink.serve, "127.0.0.1", 0)
    sink.url = "smtp://{}:{}".format(*server.sockets[0].getsockname())
    try:
        yield sink
    finally:
        server.close()
