"""The contract's rates: after auth, to know the caller; before I/O and hashing.

A limit by account needs a look-up, so the interceptor hands it to the rule that does
the look-up, as `call.account_limits`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import attrgetter

from server.domain.accounts.users import normalize_identifier
from server.domain.errors import RateLimited
from server.domain.limits import AccountLimit, Bucket, Limiter, address_key
from server.rpc.call import Call, Interceptor, Method, Outcome, Proceed
from server.rpc.contract import ACCOUNT, RateRule

_address_key = lru_cache(maxsize=4096)(address_key)
Part = Callable[[Call], str]


def rate_limited(
    method: Method, rules: Sequence[RateRule], limiter: Limiter
) -> Interceptor | None:
    """Give what counts one RPC's calls; None where there is nothing to count."""
    if not rules:
        return None
    counted = [(rule.window, _key(rule)) for rule in rules if ACCOUNT not in rule.by]
    by_account = [(rule.window, _key(rule)) for rule in rules if ACCOUNT in rule.by]

    async def intercept(call: Call, proceed: Proceed) -> Outcome:
        buckets = [Bucket(method.path, key(call), window) for window, key in counted]
        if buckets and (refusal := await limiter.take(buckets)):
            window = refusal.window
            raise RateLimited(window.limit, window.per, refusal.retry_after)
        call.account_limits = [
            AccountLimit(window, key(call)) for window, key in by_account
        ]
        return await proceed(call)

    return intercept


def _key(rule: RateRule) -> Part:
    """Return what joins everything that a rule counts by, but for the account."""
    parts = [_part(name) for name in rule.by if name != ACCOUNT]
    return lambda call: "\x1f".join(part(call) for part in parts)


def _part(name: str) -> Part:
    if name == "address":
        return lambda call: _address_key(call.address)
    if name == "caller":
        return lambda call: call.caller.subject
    read = attrgetter(name)
    return lambda call: normalize_identifier(str(read(call.request)))
