"""The streams of AuthService and UserService: revocations and changes of accounts."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from blatam.auth.v1 import auth_pb2
from blatam.user.v1 import user_pb2
from server.domain.accounts.user_watch import Change, UserWatch
from server.domain.callers import Caller
from server.domain.outbox.entries import EventType
from server.domain.revocation_watch import (
    Marker,
    Revocation,
    RevocationEvent,
    RevocationWatch,
)
from server.rpc.accounts.users import message
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


class UserWatchServicer:
    """blatam.user.v1.UserService: the stream of changes."""

    def __init__(self, watch: UserWatch) -> None:
        self._watch = watch

    async def WatchUsers(
        self, request: user_pb2.WatchUsersRequest, call: Call
    ) -> AsyncGenerator[user_pb2.WatchUsersResponse, None]:
        """Stream changes of accounts."""
        async with aclosing(self._watch.stream(request.resume_token)) as events:
            async for event in events:
                response = _change(event.change, call.caller)
                response.resume_token = event.resume_token
                yield response


def _change(change: Change | None, caller: Caller) -> user_pb2.WatchUsersResponse:
    response = user_pb2.WatchUsersResponse()
    if change is None:
        response.heartbeat.SetInParent()
    elif change.user is None:
        response.deleted.id = change.user_id
    elif change.kind is EventType.USER_UPDATED:
        response.updated.CopyFrom(message(change.user, caller))
    elif change.kind in (EventType.USER_CREATED, EventType.USER_UNDELETED):
        response.created.CopyFrom(message(change.user, caller))
    else:  # deleted, then undeleted
        response.deleted.id = change.user_id
    return response


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
