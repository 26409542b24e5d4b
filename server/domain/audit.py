"""The audit log: actor, event, address, time and outcome (ASVS 16.2.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import orjson

from server.domain.callers import Caller
from server.domain.paging import PageTokens, Position


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One event. `user_id` is the affected user, 0 if there is none.

    `outcome` is "OK" or the reason of the failure.
    """

    id: int
    at: datetime
    event: str
    actor: str
    user_id: int
    address: str
    outcome: str
    request_id: str


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """A filter of events; 0, "" and None match every event. `until` is excluded."""

    user_id: int = 0
    event: str = ""
    since: datetime | None = None
    until: datetime | None = None


@dataclass(slots=True)
class PendingEvent:
    """The event of a call in progress, until the store of its change has written it.

    `build` returns it for the affected user, 0 if the call itself names the user.
    """

    build: Callable[[int], AuditEvent]
    is_written: bool = False


# None outside of calls that are audited
pending_event: ContextVar[PendingEvent | None] = ContextVar(
    "pending_event", default=None
)


class AuditStore(Protocol):
    """Stores events, in the order of their ids."""

    async def add(self, event: AuditEvent) -> None:
        """Write an event; the store assigns its id. Raises StoreUnavailable."""

    def add_later(self, event: AuditEvent) -> None:
        """Write the event of a call that changed nothing, soon; without waiting."""

    async def page(
        self, filters: AuditFilter, before: int | None, size: int
    ) -> Sequence[AuditEvent]:
        """Return at most `size` events older than `before`, the newest first."""


@dataclass(frozen=True, slots=True)
class Audit:
    """Reads the audit log, one page at a time."""

    store: AuditStore
    tokens: PageTokens

    async def list(
        self, caller: Caller, filters: AuditFilter, size: int, token: str
    ) -> tuple[Sequence[AuditEvent], str]:
        """Return a page of events, the newest first, and the token of the next page.

        Raises InvalidFields for a token of another caller or filter.
        """
        context = orjson.dumps(["audit", caller.subject, filters])
        before = self.tokens.read(token, context).id if token else None
        events = await self.store.page(filters, before, size + 1)
        if len(events) <= size:
            return events, ""
        last = events[size - 1]
        return events[:size], self.tokens.make(Position("", last.id), context)
