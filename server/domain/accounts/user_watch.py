"""Watching accounts: every change, those of one account in their order.

A resume token is the last entry told, and when that was: what came after is kept for
a while only.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from server.domain.accounts.users import User
from server.domain.clock import Clock
from server.domain.errors import InvalidFields, ResumeTokenExpired, Violation
from server.domain.event_buffer import HEARTBEAT, EventBuffer
from server.domain.outbox.entries import EventType

CHUNK = 500
MARGIN = timedelta(days=1)  # between a token's end and that of what it needs


@dataclass(frozen=True, slots=True)
class Change:
    """An entry that tells of an account, and the account as it is by now, if it is."""

    id: int
    kind: EventType
    user_id: int
    user: User | None


@dataclass(frozen=True, slots=True)
class UserChangeEvent:
    """A message of a stream, None for a heartbeat, and where to go on after it."""

    change: Change | None
    resume_token: str


class ChangeLog(Protocol):
    """Keeps changes in one order, and a tail of what this process reads of them.

    `settled` is the last entry before which nothing can turn up any more; None until
    that is known.
    """

    settled: int | None
    buffer: EventBuffer[int]

    async def newest(self) -> int:
        """Give the last entry's id that was ever given."""

    async def chunk(self, after: int, size: int) -> Sequence[Change]:
        """Give the next settled changes after an entry, in their order."""


@dataclass(frozen=True, slots=True)
class UserWatch:
    """Gives changes to one watcher after another, from one reader."""

    log: ChangeLog
    kept: timedelta
    clock: Clock
    heartbeat: timedelta = HEARTBEAT
    chunk: int = CHUNK

    async def stream(self, resume_token: str) -> AsyncGenerator[UserChangeEvent, None]:
        """Give the changes after a token, or else those to come, without end.

        Raises InvalidFields for a token that is none, ResumeTokenExpired,
        ServerStopping, StoreUnavailable.
        """
        buffer = self.log.buffer
        buffer.check()
        last = await self._begin(resume_token)
        yield self._told(last)
        while True:
            number, settled = buffer.end, self.log.settled or 0
            while last < settled:
                found = await self.log.chunk(last, self.chunk)
                for change in found:
                    last = change.id
                    yield self._told(last, change)
                if len(found) < self.chunk:
                    last = max(last, settled)
            if not await buffer.wait(number, self.heartbeat):
                yield self._told(last)

    async def _begin(self, resume_token: str) -> int:
        if resume_token:
            return await self._resumed(resume_token)
        number = self.log.buffer.end
        while self.log.settled is None:
            await self.log.buffer.wait(number, self.heartbeat)
            number = self.log.buffer.end
        return self.log.settled

    async def _resumed(self, token: str) -> int:
        found = _TOKEN.fullmatch(token)
        if found is None:
            raise InvalidFields([_FOREIGN])
        last, told_at = map(int, found.groups())
        age = self.clock().timestamp() - told_at
        if age > (self.kept - MARGIN).total_seconds():
            raise ResumeTokenExpired
        # another process may have settled more; nobody can have seen more than was made
        if last > (self.log.settled or 0) and last > await self.log.newest():
            raise ResumeTokenExpired
        return last

    def _told(self, last: int, change: Change | None = None) -> UserChangeEvent:
        return UserChangeEvent(change, f"{last}.{int(self.clock().timestamp())}")


_TOKEN = re.compile(r"(0|[1-9][0-9]{0,17})\.([1-9][0-9]{0,10})")
_FOREIGN = Violation(
    "resumeToken", "must be the resumeToken of a message", "resume_token.foreign"
)
