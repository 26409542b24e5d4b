"""UserWatch: a stream of changes of accounts, those of one account in their order.

A resume token holds the last entry that was sent, and the time: entries are stored for
some days only.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from server.domain.accounts.users import User
from server.domain.clock import Clock
from server.domain.errors import InvalidFields, ResumeTokenExpired, Violation
from server.domain.event_buffer import HEARTBEAT, EventBuffer
from server.domain.outbox.entries import EventType

CHUNK_SIZE = 500
TOKEN_MARGIN = timedelta(days=1)  # a token expires before the entries it needs


@dataclass(frozen=True, slots=True)
class Change:
    """An entry about an account, and the account as it is now, if it exists."""

    id: int
    kind: EventType
    user_id: int
    user: User | None


@dataclass(frozen=True, slots=True)
class UserChangeEvent:
    """A message of the stream; `change` is None in a heartbeat."""

    change: Change | None
    resume_token: str


class ChangeLog(Protocol):
    """Stores changes in one order.

    `settled` is the last entry up to which no further entry can appear; None until the
    first read. `buffer` is extended when it changes.
    """

    settled: int | None
    buffer: EventBuffer[int]

    async def newest(self) -> int:
        """Return the greatest entry id that was ever used."""

    async def restored_at(self) -> datetime | None:
        """Return when the log was restored from a backup last."""

    async def chunk(self, after: int, size: int) -> Sequence[Change]:
        """Return the next settled changes after an entry, in their order."""


@dataclass(frozen=True, slots=True)
class UserWatch:
    """Streams changes to any number of clients. Entries are stored for `retention`."""

    log: ChangeLog
    retention: timedelta
    clock: Clock
    heartbeat: timedelta = HEARTBEAT
    chunk_size: int = CHUNK_SIZE

    async def stream(self, resume_token: str) -> AsyncGenerator[UserChangeEvent, None]:
        """Yield the changes after a token, or without one those that follow.

        Raises InvalidFields for an invalid token, ResumeTokenExpired, ServerStopping,
        StoreUnavailable.
        """
        buffer = self.log.buffer
        buffer.check()
        last = await self._begin(resume_token)
        yield self._event(last)
        while True:
            number, settled = buffer.end, self.log.settled or 0
            while last < settled:
                chunk = await self.log.chunk(last, self.chunk_size)
                for change in chunk:
                    last = change.id
                    yield self._event(last, change)
                if len(chunk) < self.chunk_size:
                    last = max(last, settled)
            if not await buffer.wait(number, self.heartbeat):
                yield self._event(last)

    async def _begin(self, resume_token: str) -> int:
        if resume_token:
            return await self._resumed(resume_token)
        number = self.log.buffer.end
        while self.log.settled is None:
            await self.log.buffer.wait(number, self.heartbeat)
            number = self.log.buffer.end
        return self.log.settled

    async def _resumed(self, token: str) -> int:
        match = _TOKEN.fullmatch(token)
        if match is None:
            raise InvalidFields([_INVALID_TOKEN])
        last, sent_at = map(int, match.groups())
        age = self.clock().timestamp() - sent_at
        if age > (self.retention - TOKEN_MARGIN).total_seconds():
            raise ResumeTokenExpired
        restored_at = await self.log.restored_at()
        if restored_at and sent_at <= restored_at.timestamp():
            raise ResumeTokenExpired  # it may count entries that are lost
        # another process may have settled more, but no id is beyond the newest
        if last > (self.log.settled or 0) and last > await self.log.newest():
            raise ResumeTokenExpired
        return last

    def _event(self, last: int, change: Change | None = None) -> UserChangeEvent:
        return UserChangeEvent(change, f"{last}.{int(self.clock().timestamp())}")


_TOKEN = re.compile(r"(0|[1-9][0-9]{0,17})\.([1-9][0-9]{0,10})")
_INVALID_TOKEN = Violation(
    "resumeToken", "must be the resumeToken of a message", "resume_token.foreign"
)
