"""Limits of the calls in flight, on every transport: more are refused at once.

Calls of their own and streams are counted apart, so that streams, which may last for
days, leave room for calls. gRPC's own limit answers without details, so it is higher.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import aclosing
from datetime import timedelta
from time import monotonic

from server.domain.errors import Overloaded
from server.rpc.call import Call, Interceptor, Method, Outcome, Proceed, Stream

MAX_CALLS = 2_000  # unary calls of this process at a time
MAX_CALLS_WHILE_LATE = 200  # while the event loop is late
MAX_STREAMS = 2_048  # of this process at a time
MAX_STREAMS_PER_CALLER = 1_024  # half of them: a caller leaves room for others
MAX_LAG_SECONDS = 0.1  # beyond which the event loop counts as late
RETRY_AFTER = timedelta(seconds=1)
_TICK_SECONDS = 0.02


class Admission:
    """Counts calls in flight. Raises Overloaded beyond a limit."""

    def __init__(
        self,
        *,
        max_calls: int = MAX_CALLS,
        max_calls_while_late: int = MAX_CALLS_WHILE_LATE,
        max_streams: int = MAX_STREAMS,
        max_streams_per_caller: int = MAX_STREAMS_PER_CALLER,
    ) -> None:
        self._max_calls = max_calls
        self._max_calls_while_late = min(max_calls_while_late, max_calls)
        self._max_streams = max_streams
        self._max_streams_per_caller = max_streams_per_caller
        self._lag = LoopLag()
        self._callers: Counter[str] = Counter()  # streams of each caller
        self.calls = 0
        self.streams = 0

    def begin_call(self) -> None:
        """Count a unary call that begins."""
        if self.calls >= self._max_calls_while_late and (
            self.calls >= self._max_calls or self._lag.seconds() > MAX_LAG_SECONDS
        ):
            raise Overloaded(RETRY_AFTER)
        self.calls += 1

    def end_call(self) -> None:
        """Count a unary call that ends."""
        self.calls -= 1

    def begin_stream(self, caller: str) -> None:
        """Count a stream of this caller that begins."""
        if (
            self.streams >= self._max_streams
            or self._callers[caller] >= self._max_streams_per_caller
        ):
            raise Overloaded(RETRY_AFTER)
        self.streams += 1
        self._callers[caller] += 1

    def end_stream(self, caller: str) -> None:
        """Count a stream of this caller that ends."""
        self.streams -= 1
        self._callers[caller] -= 1
        if not self._callers[caller]:
            del self._callers[caller]


class LoopLag:
    """Measures how late the event loop runs its callbacks, while it is asked to."""

    def __init__(self) -> None:
        self._due = 0.0  # of the next tick, by time.monotonic(); 0: there is none

    def seconds(self) -> float:
        """Return by how much the next tick is late at this moment."""
        now = monotonic()
        if self._due:
            return max(now - self._due, 0.0)
        asyncio.get_running_loop().call_later(_TICK_SECONDS, self._tick)
        self._due = now + _TICK_SECONDS
        return 0.0

    def _tick(self) -> None:
        self._due = 0.0


def limit_calls(method: Method, admission: Admission) -> Interceptor:
    """Return the interceptor that counts one RPC's calls."""
    return _limit_streams(admission) if method.streams else _limit_unary(admission)


def _limit_unary(admission: Admission) -> Interceptor:
    async def intercept(call: Call, proceed: Proceed) -> Outcome:
        admission.begin_call()
        try:
            return await proceed(call)
        finally:
            admission.end_call()

    return intercept


def _limit_streams(admission: Admission) -> Interceptor:
    async def intercept(call: Call, proceed: Proceed) -> Outcome:
        outcome = await proceed(call)
        assert not isinstance(outcome, bytes)  # noqa: S101  # the RPC streams
        return _counted(call, outcome, admission)

    return intercept


async def _counted(call: Call, messages: Stream, admission: Admission) -> Stream:
    """Count a stream before its first message is read, when its caller is known."""
    caller = call.caller.subject
    async with aclosing(messages):
        admission.begin_stream(caller)
        try:
            async for message in messages:
                yield message
        finally:
            admission.end_stream(caller)
