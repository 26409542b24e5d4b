"""Enforces the contract's rate limits, after authentication and before any I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import attrgetter

from server.domain.accounts.users import normalize_identifier
from server.domain.errors import RateLimited
from server.domain.limits import Bucket, Limiter, address_key
from server.rpc.call import Call, Interceptor, Method, Outcome, Proceed
from server.rpc.contract import RateRule

_address_key = lru_cache(maxsize=4096)(address_key)
ReadKey = Callable[[Call], str]


def enforce_rate_limits(
    method: Method, rules: Sequence[RateRule], limiter: Limiter
) -> Interceptor | None:
    """Return the interceptor that counts one RPC's calls; None without rate limits."""
    if not rules:
        return None
    readers = [(rule.window, [_key_reader(name) for name in rule.by]) for rule in rules]

    async def intercept(call: Call, proceed: Proceed) -> Outcome:
        buckets = [
            Bucket(method.path, "\x1f".join(read(call) for read in keys), window)
            for window, keys in readers
        ]
        if refusal := await limiter.take(buckets):
            window = refusal.window
            raise RateLimited(window.limit, window.per, refusal.retry_after)
        return await proceed(call)

    return intercept


def _key_reader(name: str) -> ReadKey:
    if name == "address":
        return lambda call: _address_key(call.address)
    if name == "caller":
        return lambda call: call.caller.subject
    read = attrgetter(name)
    return lambda call: normalize_identifier(str(read(call.request)))
