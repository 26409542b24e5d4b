"""The audit log: who did what, from where, when, and how it ended (ASVS 16.2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import orjson

from server.domain.callers import Caller
from server.domain.paging import PageTokens, Position


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One event. `user_id` is whom it concerns, 0 for nobody known.

    `outcome` is "OK" or the reason of the refusal.
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
    """Which events; 0, "" and None let everything through. `until` is excluded."""

    user_id: int = 0
    event: str = ""
    since: datetime | None = None
    until: datetime | None = None


class AuditStore(Protocol):
    """Keeps events, in the order of their ids."""

    async def add(self, event: AuditEvent) -> None:
        """Write an event; its id is given by the store."""

    async def page(
        self, wanted: AuditFilter, before: int | None, size: int
    ) -> Sequence[AuditEvent]:
        """Give at most `size` events older than `before`, the newest first."""


@dataclass(frozen=True, slots=True)
class Audit:
    """Reading the audit log, a page at a time."""

    store: AuditStore
    tokens: PageTokens

    async def list(
        self, caller: Caller, wanted: AuditFilter, size: int, token: str
    ) -> tuple[Sequence[AuditEvent], str]:
        """Give the next events, the newest first, and the token of what follows.

        Raises InvalidFields for a token of another caller or filter.
        """
        context = orjson.dumps(["audit", caller.subject, wanted])
        before = self.tokens.read(token, context).id if token else None
        found = await self.store.page(wanted, before, size + 1)
        if len(found) <= size:
            return found, ""
        last = found[size - 1]
        return found[:size], self.tokens.make(Position("", last.id), context)
