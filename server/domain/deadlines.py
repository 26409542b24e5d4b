"""The deadline of the current call, for what decides whether it can be met."""

from __future__ import annotations

import math
from contextvars import ContextVar
from time import monotonic

# By time.monotonic(); math.inf: none. The chain sets it for each call.
call_deadline: ContextVar[float] = ContextVar("call_deadline", default=math.inf)


def time_left() -> float:
    """Return the seconds until the current call's deadline; math.inf without one."""
    return call_deadline.get() - monotonic()
