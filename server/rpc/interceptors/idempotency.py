"""Returns the stored response of the first request for a repeated request id."""

from __future__ import annotations

from server.domain.clock import Clock
from server.domain.idempotency import Idempotency, RequestKey, ResponseExists
from server.rpc.call import Call, Interceptor, Method, Outcome, PendingRequest, Proceed


def replay_responses(
    method: Method, idempotency: Idempotency, clock: Clock
) -> Interceptor | None:
    """Return the interceptor of an idempotent RPC; None for any other."""
    if not method.policy.idempotent:
        return None

    async def intercept(call: Call, proceed: Proceed) -> Outcome:
        if not call.request.request_id:
            return await proceed(call)
        # RFC 9562 4: a UUID in upper case is the same UUID
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
            # A concurrent request with this id has committed.
            response = await idempotency.stored_response(key, content, now)
            if response is None:
                raise
            return response

    return intercept
