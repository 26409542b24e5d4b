"""Which sessions have ended although their access tokens have not yet expired."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from server.domain.clock import Clock
from server.domain.credentials.tokens import LEEWAY, LIFETIME

KEPT = LIFETIME + LEEWAY
_SWEEP_EVERY = 10_000


@dataclass(slots=True)
class Revocations:
    """This process's copy of what Postgres says, asked on every call.

    An entry is kept until no token of the session can be valid any more.
    """

    clock: Clock
    _ended: dict[str, datetime] = field(default_factory=dict)

    def add(self, session_id: str, ended_at: datetime) -> None:
        """Refuse the session's tokens from now on."""
        self._ended[session_id] = ended_at + KEPT
        if len(self._ended) % _SWEEP_EVERY == 0:
            now = self.clock()
            self._ended = {s: t for s, t in self._ended.items() if t > now}

    def covers(self, session_id: str) -> bool:
        """Tell whether the session has ended."""
        return session_id in self._ended
