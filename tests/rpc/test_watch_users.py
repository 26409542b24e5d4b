"""WatchUsers: a stream of changes of accounts, for services."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from blatam.auth.v1 import auth_pb2
from blatam.user.v1 import user_pb2 as pb
from server.domain.accounts.users import Role
from tests.running import RunningService
from tests.status import expect_rpc_error

Metadata = Any


async def service_key(service: RunningService, *, private: bool) -> Metadata:
    root = await service.signed_in(Role.ADMIN)
    request = auth_pb2.CreateServiceKeyRequest(name="watch", private_fields=private)
    made = await service.auth.CreateServiceKey(request, metadata=root.metadata)
    return (("authorization", f"Bearer {made.secret}"),)


@asynccontextmanager
async def watching(
    service: RunningService, key: Metadata, token: str = ""
) -> AsyncIterator[Any]:
    request = pb.WatchUsersRequest(resume_token=token)
    stream: Any = service.users.WatchUsers(request, metadata=key)
    try:
        async with asyncio.timeout(10):
            first = await stream.read()
        assert first.HasField("heartbeat")
        assert first.resume_token
        yield stream
    finally:
        stream.cancel()


async def of(stream: Any, user_id: int, count: int) -> list[pb.WatchUsersResponse]:
    """Read until `count` changes of one account have been received."""
    changes: list[pb.WatchUsersResponse] = []
    async with asyncio.timeout(10):
        while len(changes) < count:
            answer = await stream.read()
            event = getattr(answer, answer.WhichOneof("event"))
            if getattr(event, "id", 0) == user_id:
                changes.append(answer)
    return changes


def kinds(answers: list[pb.WatchUsersResponse]) -> list[str | None]:
    return [answer.WhichOneof("event") for answer in answers]


async def test_watch_users_streams_changes_and_resumes(shared: RunningService) -> None:
    """Created, updated, deleted, undeleted; a token resumes after its message."""
    key = await service_key(shared, private=False)
    root = await shared.signed_in(Role.ADMIN)
    async with watching(shared, key) as stream:
        ana = await shared.signed_in()
        created = await of(stream, ana.user.id, 1)
        assert created[0].created.username == ana.user.username
        edit = pb.UpdateUserRequest(user=pb.User(id=ana.user.id, username="anna_w"))
        await shared.users.UpdateUser(edit, metadata=ana.metadata)
        updated = await of(stream, ana.user.id, 1)
        assert updated[0].updated.username == "anna_w"
        gone = pb.DeleteUserRequest(id=ana.user.id)
        await shared.users.DeleteUser(gone, metadata=ana.metadata)
        assert kinds(await of(stream, ana.user.id, 1)) == ["deleted"]
        back = pb.UndeleteUserRequest(id=ana.user.id)
        await shared.users.UndeleteUser(back, metadata=root.metadata)
        assert kinds(await of(stream, ana.user.id, 1)) == ["created"]
    async with watching(shared, key, created[0].resume_token) as stream:
        received = kinds(await of(stream, ana.user.id, 3))
    assert received == ["updated", "deleted", "created"]


@pytest.mark.parametrize("private", [False, True])
async def test_watch_users_sends_private_fields_to_authorized_keys_only(
    shared: RunningService, private: bool
) -> None:
    """R4: the key's `private_fields` decides."""
    key = await service_key(shared, private=private)
    async with watching(shared, key) as stream:
        ana = await shared.sign_up()
        (change,) = await of(stream, ana.id, 1)
    assert bool(change.created.email) is private
    assert bool(change.created.role) is private


async def test_watch_users_ends_when_service_key_is_revoked(
    shared: RunningService,
) -> None:
    """R22, R41: an open stream ends before the next change."""
    root = await shared.signed_in(Role.ADMIN)
    request = auth_pb2.CreateServiceKeyRequest(name="watch")
    made = await shared.auth.CreateServiceKey(request, metadata=root.metadata)
    key = (("authorization", f"Bearer {made.secret}"),)
    async with watching(shared, key) as stream:
        revoke = auth_pb2.RevokeServiceKeyRequest(id=made.service_key.id)
        await shared.auth.RevokeServiceKey(revoke, metadata=root.metadata)
        ana = await shared.sign_up()
        error = await expect_rpc_error(of(stream, ana.id, 1))
    assert error.reason == "TOKEN_INVALID"


async def test_watch_users_ends_when_session_ends(
    shared: RunningService,
) -> None:
    """R22: an open stream ends with the session that opened it."""
    root = await shared.signed_in(Role.ADMIN)
    async with watching(shared, root.metadata) as stream:
        await shared.auth.Logout(auth_pb2.LogoutRequest(), metadata=root.metadata)
        ana = await shared.sign_up()
        error = await expect_rpc_error(of(stream, ana.id, 1))
    assert error.reason == "TOKEN_INVALID"


async def test_watch_users_refuses_expired_and_invalid_resume_tokens(
    shared: RunningService,
) -> None:
    """Too old, of another database, or malformed."""
    key = await service_key(shared, private=False)
    week = 7 * 86_400
    for token, reason in (
        (f"1.{int(time.time()) - week}", "RESUME_TOKEN_EXPIRED"),
        (f"999999999.{int(time.time())}", "RESUME_TOKEN_EXPIRED"),
        ("1", "INVALID_FIELDS"),
        ("1.\u0665", "INVALID_FIELDS"),
        ("x.y", "INVALID_FIELDS"),
    ):
        request = pb.WatchUsersRequest(resume_token=token)
        call: Any = shared.users.WatchUsers(request, metadata=key)
        assert (await expect_rpc_error(call.read())).reason == reason


async def test_watch_users_ends_when_server_stops(service: RunningService) -> None:
    key = await service_key(service, private=False)
    async with watching(service, key) as stream:
        await service.drain()
        error = await expect_rpc_error(stream.read())
    assert error.code is grpc.StatusCode.UNAVAILABLE
    assert error.reason == "SERVER_STOPPING"
