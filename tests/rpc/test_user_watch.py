"""Changes of accounts as messages: encoded once for callers with the same rights."""

from collections.abc import AsyncGenerator
from typing import Any, cast

from blatam.user.v1 import user_pb2
from server.domain.accounts.user_watch import Change, UserChangeEvent
from server.domain.accounts.users import Role, User
from server.domain.callers import Caller
from server.domain.outbox.entries import EventType
from server.rpc.accounts.user_watch import UserWatchServicer
from server.rpc.call import Call
from tests.fakes import NOON

ANA = User(
    id=1,
    email="ana@example.com",
    username="ana",
    role=Role.STUDENT,
    is_active=True,
    email_verified=False,
    created_at=NOON,
    updated_at=NOON,
    version=1,
)


class FakeWatch:
    """Streams one change to everybody."""

    def __init__(self) -> None:
        change = Change(7, EventType.USER_UPDATED, ANA.id, ANA)
        self.events = [UserChangeEvent(None, "6.1"), UserChangeEvent(change, "7.1")]

    async def stream(self, _token: str) -> AsyncGenerator[UserChangeEvent, None]:
        for event in self.events:
            yield event


async def messages(servicer: UserWatchServicer, caller: Caller) -> list[bytes]:
    """Return what a caller receives."""
    call: Any = type("CallOf", (), {"caller": caller})()
    request = user_pb2.WatchUsersRequest()
    return [message async for message in servicer.WatchUsers(request, cast(Call, call))]


async def test_change_is_encoded_once_for_callers_with_the_same_rights() -> None:
    servicer = UserWatchServicer(cast(Any, FakeWatch()))
    first = await messages(servicer, Caller(service_id=1))
    second = await messages(servicer, Caller(service_id=2))
    assert len(first) == 2
    assert all(a is b for a, b in zip(first, second, strict=True))


async def test_change_is_encoded_apart_for_callers_with_more_rights() -> None:
    """R4: whoever comes first."""
    servicer = UserWatchServicer(cast(Any, FakeWatch()))
    callers = [
        Caller(service_id=1, sees_private=sees_private)
        for sees_private in (True, False, True)
    ]
    changes = [
        user_pb2.WatchUsersResponse.FromString((await messages(servicer, caller))[1])
        for caller in callers
    ]
    emails = [change.updated.email for change in changes]
    assert emails == ["ana@example.com", "", "ana@example.com"]
    assert {change.resume_token for change in changes} == {"7.1"}
