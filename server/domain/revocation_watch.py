"""Watching revocations: first what is in force, then what comes.

A resume token is a transaction: what older ones wrote has been told. What later ones
wrote is told again, so that none is left out, in whatever order they commit.
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

CHUNK = 1_000


@dataclass(frozen=True, slots=True)
class Revoked:
    """A session that has ended; `token` is where to go on after it."""

    id: int
    session_id: str
    ended_at: datetime
    token: int

    @property
    def forget_at(self) -> datetime:
        """When no access token of the session can be valid any more."""
        return self.ended_at + REVOCATION_RETENTION


class Sign(Enum):
    """What a stream says beside revocations."""

    CAUGHT_UP = auto()
    HEARTBEAT = auto()


@dataclass(frozen=True, slots=True)
class RevocationEvent:
    """A message of a stream, and where to go on after it."""

    event: Revoked | Sign
    resume_token: str


class RevocationLog(Protocol):
    """Keeps revocations, and a tail of what this process reads of them."""

    buffer: EventBuffer[Revoked]

    async def resume_from(self, token: int) -> tuple[int, int]:
        """Give where to begin after a resume token, and the token of the present."""

    async def chunk(self, since: int, after_id: int, size: int) -> Sequence[Revoked]:
        """Give revocations in force, from a place on, in the order of ids."""


@dataclass(frozen=True, slots=True)
class RevocationWatch:
    """Gives revocations to one watcher after another, from one reader."""

    log: RevocationLog
    heartbeat: timedelta = HEARTBEAT
    chunk: int = CHUNK

    async def stream(self, resume_token: str) -> AsyncGenerator[RevocationEvent, None]:
        """Give what is in force, a sign, and then what comes, without end.

        Raises InvalidFields for a token that is none, ServerStopping,
        StoreUnavailable.
        """
        buffer, token = self.log.buffer, _read(resume_token)
        buffer.check()
        number = buffer.end  # from here on the tail tells what the log does not yet
        since, token = await self.log.resume_from(token)
        async for told in self._logged(since):
            yield told
        yield RevocationEvent(Sign.CAUGHT_UP, str(token))
        while True:
            if not await buffer.wait(number, self.heartbeat):
                yield RevocationEvent(Sign.HEARTBEAT, str(token))
                continue
            found = buffer.since(number)
            number = buffer.end
            if found is None:  # too slow for the tail: the log has it all
                since, token = await self.log.resume_from(token)
                async for told in self._logged(since):
                    yield told
                continue
            for revoked in found:
                token = revoked.token
                yield RevocationEvent(revoked, str(token))

    async def _logged(self, since: int) -> AsyncGenerator[RevocationEvent, None]:
        """Give what is in the log; broken off, it begins at the same place again."""
        last, more = 0, True
        while more:
            found = await self.log.chunk(since, last, self.chunk)
            for revoked in found:
                last = revoked.id
                yield RevocationEvent(revoked, str(since))
            more = len(found) == self.chunk


def _read(token: str) -> int:
    if not token:
        return 0
    if not re.fullmatch(r"0|[1-9][0-9]{0,17}", token):
        raise InvalidFields([_FOREIGN])
    return int(token)


_FOREIGN = Violation(
    "resumeToken", "must be the resumeToken of a message", "resume_token.foreign"
)
