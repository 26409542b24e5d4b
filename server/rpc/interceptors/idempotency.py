"""Repeats of a request with a request id are given the first answer."""

from __future__ import annotations

from server.domain.clock import Clock
from server.domain.idempotency import Idempotency, RequestKey, ResponseExists
from server.rpc.call import Call, Interceptor, Method, Outcome, PendingRequest, Proceed


def idempotent(
    method: Method, idempotency: Idempotency, clock: Clock
) -> Interceptor | None:
    """Give what recognises one RPC's repeats; None where the contract has none."""
    if not method.policy.idempotent:
        return None

    async def intercept(call: Call, proceed: Proceed) -> Outcome:
        if not call.request.request_id:
            return await proceed(call)
        # RFC 9562 4: upper and lower case name the same UUID
        call.request.request_id = call.request.request_id.lower()
        key = RequestKey(call.caller.subject, method.path, call.request.request_id)
        now = clock()
        content = call.request.SerializeToString(deterministic=True)
        response = await idempotency.stored_response(key, content, now)
        if response is not None:
            return response
        call.pending = PendingRequest(key, idempotency.fingerprint(content), now)
        try:
            return await proceed(call)
        except ResponseExists:
            # a concurrent one was first, and has committed by now
            first = await idempotency.stored_response(key, content, now)
            if first is None:
                raise
            return first

    return intercept
