"""UserService: messages in, messages out."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from blatam.user.v1 import user_pb2 as pb
from server.domain.callers import Caller
from server.domain.paging import Sort
from server.domain.users import Role, User, UserFilter, Users
from server.rpc.call import Call


class UserService:
    """blatam.user.v1.UserService."""

    def __init__(self, users: Users) -> None:
        self._users = users

    async def CreateUser(
        self, request: pb.CreateUserRequest, call: Call
    ) -> pb.CreateUserResponse:
        """Sign a person up; the answer shows the whole account to its owner."""

        def answer(user: User) -> pb.CreateUserResponse:
            return pb.CreateUserResponse(user=message(user, Caller(user.id)))

        user = await self._users.register(
            request.email,
            request.username,
            request.password,
            once=call.once(answer),
        )
        return answer(user)

    async def GetUser(
        self, request: pb.GetUserRequest, call: Call
    ) -> pb.GetUserResponse:
        """Read one account."""
        user = await self._users.get(request.id)
        return pb.GetUserResponse(user=message(user, call.caller))

    async def GetCurrentUser(
        self, request: pb.GetCurrentUserRequest, call: Call
    ) -> pb.GetCurrentUserResponse:
        """Read the caller's own account."""
        user = await self._users.get(call.caller.user_id)
        return pb.GetCurrentUserResponse(user=message(user, call.caller))

    async def ListUsers(
        self, request: pb.ListUsersRequest, call: Call
    ) -> pb.ListUsersResponse:
        """List accounts, a page at a time."""
        page = await self._users.list(
            call.caller,
            _filter(request),
            Sort.parse(request.sort_by),
            number=request.page if request.HasField("page") else None,
            size=request.page_size if request.HasField("page_size") else None,
            token=request.page_token,
        )
        return pb.ListUsersResponse(
            items=[message(user, call.caller) for user in page.rows.items],
            total=page.rows.total,
            total_estimated=page.rows.total_estimated,
            page=page.number,
            size=page.size,
            pages=page.pages,
            has_next=page.rows.more,
            has_prev=page.has_prev,
            next_page_token=page.next_token,
        )


def _filter(request: pb.ListUsersRequest) -> UserFilter:
    return UserFilter(
        is_active=request.is_active if request.HasField("is_active") else None,
        username_prefix=request.username_prefix,
        email=request.email,
        role=Role(request.role) if request.role else None,
    )


def message(user: User, caller: Caller) -> pb.User:
    """Give the account, as far as the caller may see it (R4)."""
    shown = pb.User(
        id=user.id,
        username=user.username,
        is_active=user.is_active,
    )
    _set(shown.created_at, user.created_at)
    if caller.sees_all_of(user.id):
        shown.email = user.email
        shown.role = pb.Role.ValueType(user.role)
        shown.email_verified = user.email_verified
        _set(shown.updated_at, user.updated_at)
        shown.etag = f"{user.version:x}"
    return shown


def _set(timestamp: Timestamp, moment: datetime) -> None:
    """Write a moment; a quarter of what FromDatetime costs, twice in every answer."""
    timestamp.seconds = int(moment.timestamp())
    timestamp.nanos = moment.microsecond * 1000
