"""Back up, wipe, restore: users, sessions and erasures, with the whole service."""

from pathlib import Path

import grpc
import sqlalchemy as sa

from blatam.auth.v1 import auth_pb2
from blatam.user.v1 import user_pb2
from server.domain.accounts.users import Role
from server.store.accounts.erasure_log import read_erasures
from server.store.backups.completion import CompletionOptions
from tests.backups import Backups, opened
from tests.running import RunningService, SignedInUser, running
from tests.status import expect_rpc_error


async def refreshed(service: RunningService, who: SignedInUser) -> None:
    request = auth_pb2.RefreshTokenRequest(refresh_token=who.tokens.refresh_token)
    answer = await service.auth.RefreshToken(request)
    assert answer.tokens.session_id == who.tokens.session_id


async def test_restored_users_log_in_and_no_erased_user_returns(
    backups: Backups, database_url: str, redis_url: str, tmp_path: Path
) -> None:
    file, log = tmp_path / "backup", tmp_path / "erasures"
    async with running(database_url, redis_url, erasure_log=log) as service:
        root = await service.signed_in(Role.ADMIN)
        ana, bea, eva = [await service.signed_in() for _ in range(3)]
        await backups.back_up(database_url, file)
        await service.users.EraseUser(
            user_pb2.EraseUserRequest(id=bea.user.id), metadata=root.metadata
        )
        edited = user_pb2.User(id=eva.user.id, username="eva_after_backup")
        await service.users.UpdateUser(
            user_pb2.UpdateUserRequest(user=edited), metadata=eva.metadata
        )
        lost = await service.signed_in()
    async with opened(database_url) as database, database.alone() as connection:
        await connection.execute(sa.text("drop schema public cascade"))
        await connection.execute(sa.text("create schema public"))

    options = CompletionOptions(read_erasures(log))
    report = await backups.restore(database_url, file, options)
    assert report.erased == 1

    async with running(database_url, redis_url, erasure_log=log) as service:
        for who in (root, ana, eva):
            await service.log_in(who.user.username)
            await refreshed(service, who)
            user = await service.users.GetUser(
                user_pb2.GetUserRequest(id=who.user.id), metadata=ana.metadata
            )
            assert user.user.username == who.user.username
        for gone in (bea, lost):
            error = await expect_rpc_error(service.log_in(gone.user.username))
            assert error.code is grpc.StatusCode.UNAUTHENTICATED
            request = user_pb2.GetUserRequest(id=gone.user.id)
            call = service.users.GetUser(request, metadata=ana.metadata)
            assert (await expect_rpc_error(call)).code is grpc.StatusCode.NOT_FOUND
        assert (await service.sign_up()).id > lost.user.id


async def test_restore_with_end_sessions_ends_them_all(
    backups: Backups, database_url: str, redis_url: str, tmp_path: Path
) -> None:
    """Also a session that the database has lost."""
    file = tmp_path / "backup"
    async with running(database_url, redis_url) as service:
        ana = await service.signed_in()
        await backups.back_up(database_url, file)
        again = await service.log_in(ana.user.username)
    options = CompletionOptions({}, end_sessions=True)
    report = await backups.restore(database_url, file, options, replace=True)
    assert report.ended_sessions == 1
    async with running(database_url, redis_url) as service:
        for tokens in (ana.tokens, again):
            call = service.users.GetCurrentUser(
                user_pb2.GetCurrentUserRequest(),
                metadata=SignedInUser(ana.user, tokens).metadata,
            )
            error = await expect_rpc_error(call)
            assert error.code is grpc.StatusCode.UNAUTHENTICATED
        await service.log_in(ana.user.username)
