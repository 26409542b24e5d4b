"""Authentication and the contract's access rule of an RPC.

A known token costs a dictionary look-up, a new one a signature check. Only a token
with an unknown signing key does I/O: it waits for the keys to be read again, which
happens at most once per second (R14).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from operator import attrgetter
from typing import Any

from blatam.policy.v1.policy_pb2 import (
    ACCESS_PUBLIC,
    ACCESS_SELF,
    ACCESS_SERVICE,
    ACCESS_SIGNED_IN,
)
from server.domain.callers import Caller, current_caller
from server.domain.errors import (
    AccessDenied,
    KeyUnknown,
    TokenInvalid,
    TokenMissing,
    UserRequired,
)
from server.rpc.call import Call, Interceptor, Method, Outcome, Proceed, Stream

# Returns the caller of a token, or without one of the names in a client certificate.
VerifyToken = Callable[[str | None, Sequence[str]], Caller]
RefreshKeys = Callable[[], Awaitable[None]]
_SCHEME = "bearer"


def authorize_calls(
    method: Method, verify: VerifyToken, refresh_keys: RefreshKeys
) -> Interceptor | None:
    """Return the interceptor that enforces the access rule of one RPC; None if public.

    `verify` raises TokenMissing and TokenInvalid. If it raises KeyUnknown,
    `refresh_keys` is awaited and the token is verified once more.
    """
    policy = method.policy
    if policy.access == ACCESS_PUBLIC:
        return None
    read_owner: Callable[[Any], int] | None = (
        attrgetter(policy.self) if policy.access == ACCESS_SELF else None
    )

    read_token: Callable[[Any], str] | None = (
        attrgetter(policy.token_field) if policy.token_field else None
    )

    async def restricted(call: Call, proceed: Proceed) -> Outcome:
        try:
            try:
                caller = _identify(call, verify)
            except KeyUnknown:
                await refresh_keys()
                caller = _identify(call, verify)
            call.caller = caller
            current_caller.set(caller)
        except (TokenMissing, TokenInvalid):
            if read_token and read_token(call.request):
                return await proceed(call)  # the RPC verifies this token
            raise
        if policy.user_required and not caller.user_id:
            raise UserRequired
        owner = read_owner(call.request) if read_owner else 0
        if not _is_allowed(policy.access, caller, owner):
            raise AccessDenied("your account has no permission for this call")
        outcome = await proceed(call)
        if isinstance(outcome, bytes):
            return outcome
        return _recheck_each_message(call, outcome, verify)

    return restricted


async def _recheck_each_message(
    call: Call, messages: Stream, verify: VerifyToken
) -> Stream:
    """Yield messages while the caller's token is valid (R22).

    Some streams never end by themselves; a revoked key must not keep reading.
    """
    async with aclosing(messages):
        current_caller.set(call.caller)  # in the task of the reader, which may change
        async for message in messages:
            _identify(call, verify)
            yield message
            current_caller.set(call.caller)


def _identify(call: Call, verify: VerifyToken) -> Caller:
    header = call.metadata.get("authorization")
    if header is None:
        return verify(None, call.certificate_names)
    if not header:
        raise TokenMissing
    if not isinstance(header, str):
        raise TokenInvalid(
            "more than one authorization header",
            "the request has more than one authorization header: send exactly one",
        )
    # RFC 9110 5.5: white space around a field's value; 11.6.2: scheme 1*SP credentials
    scheme, _, token = header.strip(" \t").partition(" ")
    if scheme.lower() != _SCHEME:
        raise TokenInvalid(
            "no bearer token",
            "the authorization header has no bearer token: "
            "send `authorization: Bearer <token>`",
        )
    return verify(token.lstrip(" "), call.certificate_names)


def _is_allowed(access: int, caller: Caller, owner: int) -> bool:
    if access == ACCESS_SIGNED_IN or caller.is_admin:
        return True
    if caller.service_id:
        return access == ACCESS_SERVICE
    return access == ACCESS_SELF and caller.user_id == owner
