"""Who calls, and may they: the contract's access, and nothing that waits.

A token that was seen before costs a look-up; a new one a signature; none does I/O,
but for one that names a key which this process has not seen: it waits for a look, of
which there is one a second at most (R14).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from operator import attrgetter
from typing import Any

from blatam.policy.v1.policy_pb2 import Access
from server.domain.callers import Caller
from server.domain.errors import (
    AccessDenied,
    KeyUnknown,
    TokenInvalid,
    TokenMissing,
    UserRequired,
)
from server.rpc.call import Call, Interceptor, Method, Outcome, Proceed, Stream

Verify = Callable[[str], Caller]
Learn = Callable[[], Awaitable[None]]
_SCHEME = "bearer "


def authorized(method: Method, verify: Verify, learn: Learn) -> Interceptor:
    """Give what enforces one RPC's access.

    `verify` raises TokenInvalid, or KeyUnknown, after which `learn` is awaited and the
    token verified once more.
    """
    policy = method.policy
    own: Callable[[Any], int] | None = (
        attrgetter(policy.self) if policy.access == Access.ACCESS_SELF else None
    )

    stand_in: Callable[[Any], str] | None = (
        attrgetter(policy.token_field) if policy.token_field else None
    )

    async def public(call: Call, proceed: Proceed) -> Outcome:
        return await proceed(call)

    async def guarded(call: Call, proceed: Proceed) -> Outcome:
        try:
            caller = call.caller = await _identify_or_learn(call, verify, learn)
        except (TokenMissing, TokenInvalid):
            if stand_in and stand_in(call.request):
                return await proceed(call)  # the RPC verifies it
            raise
        if policy.user_required and not caller.user_id:
            raise UserRequired
        if not _may(policy.access, caller, own(call.request) if own else 0):
            raise AccessDenied("your account may not do this")
        outcome = await proceed(call)
        return (
            outcome if isinstance(outcome, bytes) else _streamed(call, outcome, verify)
        )

    return public if policy.access == Access.ACCESS_PUBLIC else guarded


async def _streamed(call: Call, messages: Stream, verify: Verify) -> Stream:
    """Give a stream for as long as its caller may have one (R22).

    Some have no end of their own: a key that is revoked must not watch on.
    """
    async with aclosing(messages):
        async for message in messages:
            _identify(call, verify)
            yield message


async def _identify_or_learn(call: Call, verify: Verify, learn: Learn) -> Caller:
    try:
        return _identify(call, verify)
    except KeyUnknown:
        await learn()
        return _identify(call, verify)


def _identify(call: Call, verify: Verify) -> Caller:
    header = call.metadata.get("authorization")
    if not header:
        raise TokenMissing
    if not isinstance(header, str) or header[: len(_SCHEME)].lower() != _SCHEME:
        raise TokenInvalid("no bearer token")
    return verify(header[len(_SCHEME) :])


def _may(access: int, caller: Caller, owner: int) -> bool:
    if access == Access.ACCESS_SIGNED_IN or caller.is_admin:
        return True
    if caller.service_id:
        return access == Access.ACCESS_SERVICE
    return access == Access.ACCESS_SELF and caller.user_id == owner
