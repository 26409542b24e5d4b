"""UserService: the stream of changes of accounts."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from blatam.user.v1 import user_pb2
from server.domain.accounts.user_watch import Change, UserChangeEvent, UserWatch
from server.domain.callers import Caller
from server.domain.outbox.entries import EventType
from server.rpc.accounts.users import message
from server.rpc.call import Call

MAX_ENCODED = 1_000  # messages


class UserWatchServicer:
    """blatam.user.v1.UserService: the stream of changes."""

    def __init__(self, watch: UserWatch) -> None:
        self._watch = watch
        # By change, token and whether the caller sees private fields. The values hold
        # the changes, so that their identity stays that of the key.
        self._encoded: dict[tuple[int, str, bool], tuple[Change | None, bytes]] = {}

    async def WatchUsers(
        self, request: user_pb2.WatchUsersRequest, call: Call
    ) -> AsyncGenerator[bytes, None]:
        """Stream changes of accounts, each encoded once for all callers."""
        async with aclosing(self._watch.stream(request.resume_token)) as events:
            async for event in events:
                yield self._message(event, call.caller)

    def _message(self, event: UserChangeEvent, caller: Caller) -> bytes:
        change = event.change
        is_private = change is not None and caller.sees_all_of(change.user_id)
        key = (id(change), event.resume_token, is_private)
        encoded = self._encoded.get(key)
        if encoded is None:
            response = _change(change, caller)
            response.resume_token = event.resume_token
            if len(self._encoded) == MAX_ENCODED:
                self._encoded.clear()
            encoded = self._encoded[key] = (change, response.SerializeToString())
        return encoded[1]


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
