"""AuthService and UserService, what they tell without end: messages out."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from blatam.auth.v1 import auth_pb2
from blatam.user.v1 import user_pb2
from server.domain.accounts.user_watch import Change, UserWatch
from server.domain.callers import Caller
from server.domain.outbox.entries import EventType
from server.domain.revocation_watch import (
    RevocationEvent,
    RevocationWatch,
    Revoked,
    Sign,
)
from server.rpc.accounts.users import message
from server.rpc.call import Call


class RevocationServicer:
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


class UserWatchServicer:
    """blatam.user.v1.UserService, as far as it tells of changes."""

    def __init__(self, watch: UserWatch) -> None:
        self._watch = watch

    async def WatchUsers(
        self, request: user_pb2.WatchUsersRequest, call: Call
    ) -> AsyncGenerator[user_pb2.WatchUsersResponse, None]:
        """Stream changes of accounts."""
        async with aclosing(self._watch.stream(request.resume_token)) as found:
            async for told in found:
                shown = _change(told.change, call.caller)
                shown.resume_token = told.resume_token
                yield shown


def _change(change: Change | None, caller: Caller) -> user_pb2.WatchUsersResponse:
    shown = user_pb2.WatchUsersResponse()
    if change is None:
        shown.heartbeat.SetInParent()
    elif change.user is None:
        shown.deleted.id = change.user_id
    elif change.kind is EventType.USER_UPDATED:
        shown.updated.CopyFrom(message(change.user, caller))
    elif change.kind in (EventType.USER_CREATED, EventType.USER_UNDELETED):
        shown.created.CopyFrom(message(change.user, caller))
    else:  # deleted then, and brought back since
        shown.deleted.id = change.user_id
    return shown


def _revocation(told: RevocationEvent) -> auth_pb2.WatchRevocationsResponse:
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
