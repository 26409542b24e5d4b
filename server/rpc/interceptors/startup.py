"""Refuses calls until the process has read from Postgres what it serves with."""

from __future__ import annotations

from collections.abc import Callable

from server.domain.errors import StoreUnavailable
from server.rpc.call import Call, Interceptor, Outcome, Proceed


def refuse_until_started(is_started: Callable[[], bool]) -> Interceptor:
    """Return the interceptor: UNAVAILABLE, and no call reads half-filled caches."""

    async def intercept(call: Call, proceed: Proceed) -> Outcome:
        if not is_started():
            raise StoreUnavailable
        return await proceed(call)

    return intercept
