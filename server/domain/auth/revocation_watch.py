"""RevocationWatch: a stream of the revocations in force and of those that follow.

A resume token is a transaction id: the stream has sent what older transactions wrote.
What later ones wrote is sent again, so that no revocation is missed, in whatever order
the transactions commit.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Protocol

from server.domain.credentials.revocations import REVOCATION_RETENTION
from server.domain.errors import InvalidFields, Violation
from server.domain.event_buffer import HEARTBEAT, EventBuffer

CHUNK_SIZE = 1_000


@dataclass(frozen=True, slots=True)
class Revocation:
    """A session that has ended; `token` resumes the stream after it."""

    id: int
    session_id: str
    ended_at: datetime
    token: int

    @property
    def forget_at(self) -> datetime:
        """When the last access token of the session has expired."""
        return self.ended_at + REVOCATION_RETENTION


class Marker(Enum):
    """An event of the stream that is no revocation."""

    CAUGHT_UP = auto()
    HEARTBEAT = auto()


@dataclass(frozen=True, slots=True)
class RevocationEvent:
    """A message of the stream, and the token that resumes it after the message."""

    event: Revocation | Marker
    resume_token: str


class RevocationLog(Protocol):
    """Stores revocations, and buffers those that this process reads."""

    buffer: EventBuffer[Revocation]

    async def resume_from(self, token: int) -> tuple[int, int]:
        """Return the transaction to resume from, and the token of the present."""

    async def chunk(self, since: int, after_id: int, size: int) -> Sequence[Revocation]:
        """Return revocations in force, written since a transaction, by id."""


@dataclass(frozen=True, slots=True)
class RevocationWatch:
    """Streams revocations to any number of clients."""

    log: RevocationLog
    heartbeat: timedelta = HEARTBEAT
    chunk_size: int = CHUNK_SIZE

    async def stream(self, resume_token: str) -> AsyncGenerator[RevocationEvent, None]:
        """Yield the revocations in force, CAUGHT_UP, then those that follow.

        Raises InvalidFields for an invalid token, ServerStopping, StoreUnavailable.
        """
        buffer, token = self.log.buffer, _parse(resume_token)
        buffer.check()
        number = buffer.end  # later revocations are buffered
        since, token = await self.log.resume_from(token)
        async for event in self._stored(since):
            yield event
        yield RevocationEvent(Marker.CAUGHT_UP, str(token))
        while True:
            if not await buffer.wait(number, self.heartbeat):
                yield RevocationEvent(Marker.HEARTBEAT, str(token))
                continue
            revocations = buffer.since(number)
            number = buffer.end
            if revocations is None:  # fell behind the buffer: read the store
                since, token = await self.log.resume_from(token)
                async for event in self._stored(since):
                    yield event
                continue
            for revocation in revocations:
                token = revocation.token
                yield RevocationEvent(revocation, str(token))

    async def _stored(self, since: int) -> AsyncGenerator[RevocationEvent, None]:
        """Yield stored revocations; all have the token that begins before them."""
        last, more = 0, True
        while more:
            chunk = await self.log.chunk(since, last, self.chunk_size)
            for revocation in chunk:
                last = revocation.id
                yield RevocationEvent(revocation, str(since))
            more = len(chunk) == self.chunk_size


def _parse(token: str) -> int:
    if not token:
        return 0
    if not re.fullmatch(r"0|[1-9][0-9]{0,17}", token):
        raise InvalidFields([_INVALID_TOKEN])
    return int(token)


_INVALID_TOKEN = Violation(
    "resumeToken", "must be the resumeToken of a message", "resume_token.foreign"
)
