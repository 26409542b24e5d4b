"""The contract's rates: after auth, to know the caller; before I/O and hashing."""

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
Part = Callable[[Call], str]


def rate_limited(
    method: Method, rules: Sequence[RateRule], limiter: Limiter
) -> Interceptor | None:
    """Give what counts one RPC's calls; None where there is nothing to count."""
    if not rules:
        return None
    counted = [(rule.window, [_part(name) for name in rule.by]) for rule in rules]

    async def intercept(call: Call, proceed: Proceed) -> Outcome:
        buckets = [
            Bucket(method.path, "\x1f".join(part(call) for part in parts), window)
            for window, parts in counted
        ]
        if refusal := await limiter.take(buckets):
            window = refusal.window
            raise RateLimited(window.limit, window.per, refusal.retry_after)
        return await proceed(call)

    return intercept


def _part(name: str) -> Part:
    if name == "address":
        return lambda call: _address_key(call.address)
    if name == "caller":
        return lambda call: call.caller.subject
    read = attrgetter(name)
    return lambda call: normalize_identifier(str(read(call.request)))
