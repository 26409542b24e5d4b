"""Writes authentication and administration to the audit log (R40).

Calls refused early (no token, rate limit, invalid fields) are in the service log only:
a flood of bad calls must not become a flood of rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from operator import attrgetter
from typing import Any

import structlog

from server.domain.audit import AuditEvent, AuditStore
from server.domain.clock import Clock
from server.domain.errors import StoreUnavailable
from server.rpc.call import (
    Call,
    Failure,
    Interceptor,
    Method,
    Outcome,
    Proceed,
    Stream,
)

log = structlog.get_logger()
Write = Callable[[Call, str], Coroutine[Any, Any, None]]
_NOT_AUDITED = frozenset(
    {
        "RATE_LIMITED",
        "OVERLOADED",
        "TOKEN_MISSING",
        "TOKEN_INVALID",
        "MALFORMED_REQUEST",
        "INVALID_FIELDS",
        "STORE_UNAVAILABLE",
    }
)


def audit_calls(method: Method, store: AuditStore, clock: Clock) -> Interceptor | None:
    """Return the interceptor that writes one RPC's audit events; None without event."""
    event = method.policy.audit
    if not event:
        return None
    read_user_id = attrgetter(method.policy.self) if method.policy.self else None

    async def write(call: Call, outcome: str, user_id: int = 0) -> None:
        user_id = user_id or call.audit_user_id
        if not user_id and read_user_id:
            user_id = read_user_id(call.request)
        record = AuditEvent(
            id=0,
            at=clock(),
            event=event,
            actor=call.caller.subject,
            user_id=user_id or call.caller.user_id,
            address="" if call.audit_without_address else call.address,
            outcome=outcome,
            request_id=call.request_id,
        )
        try:
            await store.add(record)
        except StoreUnavailable:
            log.error("audit event lost", event_name=event, outcome=outcome)

    async def intercept(call: Call, proceed: Proceed) -> Outcome:
        try:
            reply = await proceed(call)
        except Failure as failure:
            if failure.reason not in _NOT_AUDITED:
                account = getattr(failure.__cause__, "account_id", 0)
                await write(call, failure.reason, account)
            raise
        if not isinstance(reply, bytes):
            return _audit_stream(call, reply, write)
        await write(call, "OK")
        return reply

    return intercept


async def _audit_stream(call: Call, messages: Stream, write: Write) -> Stream:
    """Write how a stream ended: the reader may have received part of it."""
    outcome = "CANCELLED"
    try:
        async with aclosing(messages):
            async for message in messages:
                yield message
        outcome = "OK"
    except Failure as failure:
        outcome = failure.reason
        raise
    finally:
        # A disconnected reader may cancel this again; the event is written anyway.
        await asyncio.shield(write(call, outcome))
