"""Repeats of a request with a request id are given the first answer."""

from __future__ import annotations

from server.domain.clock import Clock
from server.domain.requests import AnswerExists, RequestKey, Requests
from server.rpc.call import Call, Interceptor, Method, Outcome, Pending, Proceed


def once_only(method: Method, requests: Requests, clock: Clock) -> Interceptor | None:
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
        answer = await requests.first_answer(key, content, now)
        if answer is not None:
            return answer
        call.pending = Pending(key, requests.fingerprint(content), now)
        try:
            return await proceed(call)
        except AnswerExists:
            # a concurrent one was first, and has committed by now
            first = await requests.first_answer(key, content, now)
            if first is None:
                raise
            return first

    return intercept
