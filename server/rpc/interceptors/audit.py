"""Authentication and administration are written to the audit log (R40).

What was refused before it cost anything (no token, too many calls, bad fields) stands
in the log alone: a flood must not become a flood of rows.
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
_LOG_ALONE = frozenset(
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


def audited(method: Method, store: AuditStore, clock: Clock) -> Interceptor | None:
    """Give what writes one RPC's events; None where the contract names none."""
    event = method.policy.audit
    if not event:
        return None
    about = attrgetter(method.policy.self) if method.policy.self else None

    async def write(call: Call, outcome: str, user_id: int = 0) -> None:
        user_id = user_id or call.audit_user_id
        if not user_id and about:
            user_id = about(call.request)
        entry = AuditEvent(
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
            await store.add(entry)
        except StoreUnavailable:
            log.error("an event is in no audit log", audited=event, outcome=outcome)

    async def intercept(call: Call, proceed: Proceed) -> Outcome:
        try:
            reply = await proceed(call)
        except Failure as failure:
            if failure.reason not in _LOG_ALONE:
                account = getattr(failure.__cause__, "account_id", 0)
                await write(call, failure.reason, account)
            raise
        if not isinstance(reply, bytes):
            return _streamed(call, reply, write)
        await write(call, "OK")
        return reply

    return intercept


async def _streamed(call: Call, messages: Stream, write: Write) -> Stream:
    """Write how a stream ended: part of it may be out, however that was."""
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
        # who is gone may be cancelled twice; what was given out is written all the same
        await asyncio.shield(write(call, outcome))
