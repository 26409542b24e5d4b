"""AuthService and UserService, what they tell without end: messages out."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from blatam.auth.v1 import auth_pb2
from server.domain.revocation_watch import RevocationWatch, Revoked, Sign, Told
from server.rpc.call import Call


class RevocationService:
    """blatam.auth.v1.AuthService, as far as it tells of revocations."""

    def __init__(self, watch: RevocationWatch) -> None:
        self._watch = watch

    async def WatchRevocations(
        self, request: auth_pb2.WatchRevocationsRequest, call: Call
    ) -> AsyncGenerator[auth_pb2.WatchRevocationsResponse, None]:
        """Stream the sessions whose access tokens are refused."""
        async with aclosing(self._watch.stream(request.resume_token)) as found:
            async for told in found:
                yield _revocation(told)


def _revocation(told: Told) -> auth_pb2.WatchRevocationsResponse:
    shown = auth_pb2.WatchRevocationsResponse(resume_token=told.resume_token)
    event = told.event
    if isinstance(event, Revoked):
        shown.revocation.session_id = event.session_id
        shown.revocation.revoked_at.FromDatetime(event.ended_at)
        shown.revocation.forget_at.FromDatetime(event.forget_at)
    elif event is Sign.CAUGHT_UP:
        shown.snapshot_end.SetInParent()
    else:
        shown.heartbeat.SetInParent()
    return shown
