"""UserService: accounts."""

from __future__ import annotations

from blatam.user.v1 import user_pb2 as pb
from server.domain.accounts.users import (
    Role,
    User,
    UserFilter,
    Users,
    normalize_identifier,
)
from server.domain.callers import Caller
from server.domain.paging import Sort
from server.rpc.call import Call
from server.rpc.interceptors.validation import check
from server.rpc.messages.masks import Readers, new_values
from server.rpc.messages.pages import page_fields, page_params
from server.rpc.messages.timestamps import set_timestamp


class UserServicer:
    """The RPCs of blatam.user.v1.UserService for single accounts and lists."""

    def __init__(self, users: Users) -> None:
        self._users = users

    async def CreateUser(
        self, request: pb.CreateUserRequest, call: Call
    ) -> pb.CreateUserResponse:
        """Create an account; the response has its private fields, too."""

        def response(user: User) -> pb.CreateUserResponse:
            return pb.CreateUserResponse(user=message(user, Caller(user.id)))

        user = await self._users.register(
            request.email,
            request.username,
            request.password,
            idempotency=call.idempotency_record(response),
        )
        call.audit_user_id = user.id
        return response(user)

    async def GetUser(
        self, request: pb.GetUserRequest, call: Call
    ) -> pb.GetUserResponse:
        """Read one account."""
        user = await self._users.get(request.id)
        return pb.GetUserResponse(user=message(user, call.caller))

    async def GetCurrentUser(
        self, request: pb.GetCurrentUserRequest, call: Call
    ) -> pb.GetCurrentUserResponse:
        """Read the caller's account."""
        user = await self._users.get(call.caller.user_id)
        return pb.GetCurrentUserResponse(user=message(user, call.caller))

    async def BatchGetUsers(
        self, request: pb.BatchGetUsersRequest, call: Call
    ) -> pb.BatchGetUsersResponse:
        """Read up to 100 accounts at once."""
        users, missing_ids = await self._users.get_many(request.ids)
        return pb.BatchGetUsersResponse(
            users=[message(user, call.caller) for user in users],
            missing_ids=missing_ids,
        )

    async def UpdateUser(
        self, request: pb.UpdateUserRequest, call: Call
    ) -> pb.UpdateUserResponse:
        """Change an account."""

        def response(user: User) -> pb.UpdateUserResponse:
            return pb.UpdateUserResponse(user=message(user, call.caller))

        user = await self._users.update(
            call.caller,
            request.user.id,
            new_values("user", request.user, request.update_mask, _READERS),
            request.user.etag,
            call.idempotency_record(response),
        )
        return response(user)

    async def DeleteUser(
        self, request: pb.DeleteUserRequest, call: Call
    ) -> pb.DeleteUserResponse:
        """Delete an account."""
        await self._users.delete(request.id)
        return pb.DeleteUserResponse()

    async def UndeleteUser(
        self, request: pb.UndeleteUserRequest, call: Call
    ) -> pb.UndeleteUserResponse:
        """Restore a deleted account."""

        def response(user: User) -> pb.UndeleteUserResponse:
            return pb.UndeleteUserResponse(user=message(user, call.caller))

        call.audit_user_id = request.id
        return response(
            await self._users.undelete(request.id, call.idempotency_record(response))
        )

    async def ListUsers(
        self, request: pb.ListUsersRequest, call: Call
    ) -> pb.ListUsersResponse:
        """List accounts, a page at a time."""
        page = await self._users.list(
            call.caller,
            _filter(request),
            Sort.parse(request.sort_by),
            page_params(request),
        )
        items = [message(user, call.caller) for user in page.rows.items]
        return pb.ListUsersResponse(items=items, **page_fields(page))


_READERS: Readers = {
    "username": lambda user: user.username,
    "email": lambda user: normalize_identifier(user.email),
    "is_active": lambda user: user.is_active,
    "role": lambda user: Role(user.role) if user.role else None,
}


def _filter(request: pb.ListUsersRequest) -> UserFilter:
    return UserFilter(
        is_active=request.is_active if request.HasField("is_active") else None,
        username_prefix=request.username_prefix,
        email=request.email,
        role=Role(request.role) if request.role else None,
    )


def message(user: User, caller: Caller) -> pb.User:
    """Return the account with the fields that the caller may see (R4)."""
    result = pb.User(
        id=user.id,
        username=user.username,
        is_active=user.is_active,
    )
    set_timestamp(result.created_at, user.created_at)
    if caller.sees_all_of(user.id):
        result.email = user.email
        result.role = pb.Role.ValueType(user.role)
        result.email_verified = user.email_verified
        set_timestamp(result.updated_at, user.updated_at)
        result.etag = user.etag
    return result


def check_sign_up(email: str, username: str, password: str) -> None:
    """Validate a sign-up outside of an RPC. Raises InvalidFields as the chain does."""
    request = pb.CreateUserRequest(email=email, username=username, password=password)
    check(request, request.SerializeToString())
