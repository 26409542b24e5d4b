"""Writes authentication and administration to the audit log (R40).

The event of a change is written by its store, in the same transaction. That of a call
that changed nothing, such as a refused one, is written in the background: no answer
waits for it. That of a stream is written before the stream ends.

Calls refused early (no token, rate limit, invalid fields) are in the service log only:
a flood of bad calls must not become a flood of rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from functools import partial
from operator import attrgetter
from typing import Any

from server.domain.audit import AuditEvent, AuditStore, PendingEvent, pending_event
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

Build = Callable[..., AuditEvent]
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
    if not method.policy.audit:
        return None
    build = _event_builder(method, clock)

    async def write(call: Call, outcome: str) -> None:
        record = build(call, outcome)
        try:
            await store.add(record)
        except StoreUnavailable:
            store.add_later(record)

    async def intercept(call: Call, proceed: Proceed) -> Outcome:
        pending = PendingEvent(partial(build, call, "OK"))
        token = pending_event.set(pending)
        try:
            reply = await proceed(call)
        except Failure as failure:
            if failure.reason not in _NOT_AUDITED:
                account = getattr(failure.__cause__, "account_id", 0)
                store.add_later(build(call, failure.reason, account))
            raise
        finally:
            pending_event.reset(token)
        if not isinstance(reply, bytes):
            return _audit_stream(call, reply, write)
        if not pending.is_written:
            store.add_later(build(call, call.audit_outcome))
        return reply

    return intercept


def _event_builder(method: Method, clock: Clock) -> Build:
    read_user_id = attrgetter(method.policy.self) if method.policy.self else None

    def build(call: Call, outcome: str, user_id: int = 0) -> AuditEvent:
        user_id = user_id or call.audit_user_id
        if not user_id and read_user_id:
            user_id = read_user_id(call.request)
        return AuditEvent(
            id=0,
            at=clock(),
            event=method.policy.audit,
            actor=call.caller.actor,
            user_id=user_id or call.caller.user_id,
            address=call.address,
            outcome=outcome,
            request_id=call.request_id,
        )

    return build


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
