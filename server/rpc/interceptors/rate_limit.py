"""Enforces the contract's rate limits, after authentication and before any I/O.

A limit by account needs a look-up, so the interceptor passes it to the rule that does
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
ReadKey = Callable[[Call], str]


def enforce_rate_limits(
    method: Method, rules: Sequence[RateRule], limiter: Limiter
) -> Interceptor | None:
    """Return the interceptor that counts one RPC's calls; None without rate limits."""
    if not rules:
        return None
    readers = [
        (rule.window, _key_reader(rule)) for rule in rules if ACCOUNT not in rule.by
    ]
    by_account = [
        (rule.window, _key_reader(rule)) for rule in rules if ACCOUNT in rule.by
    ]

    async def intercept(call: Call, proceed: Proceed) -> Outcome:
        buckets = [Bucket(method.path, read(call), window) for window, read in readers]
        if buckets and (refusal := await limiter.take(buckets)):
            window = refusal.window
            raise RateLimited(window.limit, window.per, refusal.retry_after)
        call.account_limits = [
            AccountLimit(window, read(call)) for window, read in by_account
        ]
        return await proceed(call)

    return intercept


def _key_reader(rule: RateRule) -> ReadKey:
    """Return what joins the values a rule counts by, without the account."""
    parts = [_part_reader(name) for name in rule.by if name != ACCOUNT]
    return lambda call: "\x1f".join(part(call) for part in parts)


def _part_reader(name: str) -> ReadKey:
    if name == "address":
        return lambda call: _address_key(call.address)
    if name == "caller":
        return lambda call: call.caller.subject
    read = attrgetter(name)
    return lambda call: normalize_identifier(str(read(call.request)))
