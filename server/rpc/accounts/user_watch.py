"""UserService: the stream of changes of accounts."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from blatam.user.v1 import user_pb2
from server.domain.accounts.user_watch import Change, UserWatch
from server.domain.callers import Caller
from server.domain.outbox.entries import EventType
from server.rpc.accounts.users import message
from server.rpc.call import Call


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
