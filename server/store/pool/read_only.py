"""ReadOnlyServer: what a pool knows of a server that refuses writes."""

from __future__ import annotations

import asyncio

REPLACE_INTERVAL_SECONDS = 1.0  # of connections to a read-only server
REPORT_SECONDS = 45.0  # longer than an alert waits for the next write to fail


class ReadOnlyServer:
    """Says when to replace the connections: another server may be primary.

    All connections are replaced, at most once per interval. Times are those of the
    event loop.
    """

    def __init__(self) -> None:
        self._due_at = 0.0
        self._replaced_at = 0.0  # connections made before are not used again
        self._reported_until = 0.0

    @property
    def is_reported(self) -> bool:
        """Whether a write was refused recently, and none has succeeded since."""
        return _now() < self._reported_until

    def record_refusal(self) -> bool:
        """Note that a write was refused; return whether to close its connection."""
        now = _now()
        is_due = now >= self._due_at
        if is_due:
            self._replaced_at = now
        self._due_at = now + REPLACE_INTERVAL_SECONDS
        self._reported_until = now + REPORT_SECONDS
        return is_due

    def record_commit(self) -> None:
        """Note that a change was committed."""
        self._reported_until = 0.0

    def is_replaced(self, connected_at: float, *, is_fallback: bool) -> bool:
        """Return whether a connection must not be used again.

        A fallback leads to a server without the target_session_attrs of the URL.
        """
        is_old = _now() - connected_at > REPLACE_INTERVAL_SECONDS
        return connected_at < self._replaced_at or (is_fallback and is_old)


def _now() -> float:
    return asyncio.get_running_loop().time()
