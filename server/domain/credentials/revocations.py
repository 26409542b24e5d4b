"""Sessions that ended before their access tokens expire."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from server.domain.clock import Clock
from server.domain.credentials.tokens import LEEWAY, LIFETIME

REVOCATION_RETENTION = LIFETIME + LEEWAY
_SWEEP_EVERY = 10_000  # entries


@dataclass(slots=True)
class Revocations:
    """This process's copy of the revocations in Postgres, read on every call.

    An entry is kept until every token of the session has expired.
    """

    clock: Clock
    _ended: dict[str, datetime] = field(default_factory=dict)

    def add(self, session_id: str, ended_at: datetime) -> None:
        """Refuse the session's tokens from now on."""
        self._ended[session_id] = ended_at + REVOCATION_RETENTION
        if len(self._ended) % _SWEEP_EVERY == 0:
            now = self.clock()
            self._ended = {s: t for s, t in self._ended.items() if t > now}

    def covers(self, session_id: str) -> bool:
        """Return whether the session has ended."""
        return session_id in self._ended
