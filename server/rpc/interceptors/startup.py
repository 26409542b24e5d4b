"""Refuses calls until the process has read from Postgres what it serves with."""

from __future__ import annotations

from collections.abc import Callable

from server.domain.errors import StoreUnavailable
from server.rpc.call import Call, CallCoroutine, Interceptor, Proceed


def refuse_until_started(is_started: Callable[[], bool]) -> Interceptor:
    """Return the interceptor: UNAVAILABLE, and no call reads half-filled caches."""

    # Not a coroutine of its own: one more per call costs as much as the check.
    def intercept(call: Call, proceed: Proceed) -> CallCoroutine:
        if not is_started():
            raise StoreUnavailable
        return proceed(call)

    return intercept
