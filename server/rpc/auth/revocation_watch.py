"""AuthService: the stream of revocations."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from blatam.auth.v1 import auth_pb2
from server.domain.auth.revocation_watch import (
    Marker,
    Revocation,
    RevocationEvent,
    RevocationWatch,
)
from server.rpc.call import Call


class RevocationServicer:
    """blatam.auth.v1.AuthService: the stream of revocations."""

    def __init__(self, watch: RevocationWatch) -> None:
        self._watch = watch

    async def WatchRevocations(
        self, request: auth_pb2.WatchRevocationsRequest, call: Call
    ) -> AsyncGenerator[auth_pb2.WatchRevocationsResponse, None]:
        """Stream the sessions whose access tokens are revoked."""
        async with aclosing(self._watch.stream(request.resume_token)) as events:
            async for event in events:
                yield _revocation(event)


def _revocation(message: RevocationEvent) -> auth_pb2.WatchRevocationsResponse:
    response = auth_pb2.WatchRevocationsResponse(resume_token=message.resume_token)
    event = message.event
    if isinstance(event, Revocation):
        response.revocation.session_id = event.session_id
        response.revocation.revoked_at.FromDatetime(event.ended_at)
        response.revocation.forget_at.FromDatetime(event.forget_at)
    elif event is Marker.CAUGHT_UP:
        response.snapshot_end.SetInParent()
    else:
        response.heartbeat.SetInParent()
    return response
