"""`DATABASE_WRITE_EPOCHS=1`: the whole service without transaction ids."""

import asyncio

import grpc
import pytest

from blatam.auth.v1 import auth_pb2
from blatam.user.v1 import user_pb2
from tests.running import PASSWORD, RunningService, SignedInUser, running


async def until_refused(service: RunningService, user: SignedInUser) -> None:
    request = user_pb2.GetCurrentUserRequest()
    async with asyncio.timeout(10):
        while True:
            await service.users.GetCurrentUser(request, metadata=user.metadata)
            await asyncio.sleep(0.01)


async def until_welcomed(user: SignedInUser, *services: RunningService) -> None:
    """Wait for the e-mail: any process may send it, each to a mailbox of its own."""
    waiting = [
        asyncio.ensure_future(service.mailbox.mail(user.user.email, "Welcome"))
        for service in services
    ]
    done, others = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        task.cancel()
    for task in done:
        task.result()  # a timeout, if nobody got the e-mail


async def test_changes_are_seen_with_write_epochs(
    database_url: str, redis_url: str
) -> None:
    """Two processes: one changes accounts and sessions, the other one sees it."""
    async with (
        running(database_url, redis_url, database_write_epochs=True) as first,
        running(database_url, redis_url, database_write_epochs=True) as second,
    ):
        ana = await first.signed_in()
        read = user_pb2.GetUserRequest(id=ana.user.id)
        await second.users.GetUser(read, metadata=ana.metadata)
        renamed = user_pb2.User(id=ana.user.id, username="renamed")
        request = user_pb2.UpdateUserRequest(user=renamed)
        await first.users.UpdateUser(request, metadata=ana.metadata)
        async with asyncio.timeout(10):
            while True:
                reply = await second.users.GetUser(read, metadata=ana.metadata)
                if reply.user.username == "renamed":
                    break
                await asyncio.sleep(0.01)
        refresh = auth_pb2.RefreshTokenRequest(refresh_token=ana.tokens.refresh_token)
        await first.auth.RefreshToken(refresh)
        login = auth_pb2.LoginRequest(identifier="renamed", password=PASSWORD)
        await second.auth.Login(login)
        await first.auth.Logout(auth_pb2.LogoutRequest(), metadata=ana.metadata)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await until_refused(second, ana)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        await until_welcomed(ana, first, second)
