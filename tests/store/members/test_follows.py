"""Writes for an account that is erased at the same time."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime

import pytest

from server.domain.accounts.users import User
from server.domain.errors import AcademyError, TokenInvalid, UserNotFound
from server.domain.members.profiles import Profile
from server.domain.posts.posts import NewPost, PostState
from server.store.accounts.erasure import begin_erasure, delete_account
from server.store.connections.connect import Database
from server.store.members.follows import PostgresFollows
from server.store.members.profiles import PostgresProfiles
from server.store.posts.posts import PostgresPosts
from tests.fakes import NOON
from tests.store.conftest import StoresUnderTest
from tests.store.test_sessions import blocked
from tests.store.test_users import new

Write = Callable[[Database, User, User], Awaitable[object]]


def follow(database: Database, follower: User, followed: User) -> Awaitable[object]:
    return PostgresFollows(database).add(follower.id, followed.id, NOON)


def post(database: Database, follower: User, followed: User) -> Awaitable[object]:
    new_post = NewPost(follower.id, "Title", "body", 0, PostState.PUBLISHED, NOON)
    return PostgresPosts(database).add(new_post)


def profile(database: Database, follower: User, followed: User) -> Awaitable[object]:
    return PostgresProfiles(database).add(new_profile(follower.id, NOON))


def new_profile(user_id: int, now: datetime) -> Profile:
    return Profile(user_id, "Ana", "", "", "", "", now, now, 1)


@pytest.mark.parametrize(
    ("write", "erased", "refusal"),
    [
        (follow, "follower", TokenInvalid),
        (follow, "followed", UserNotFound),
        (post, "follower", TokenInvalid),
        (profile, "follower", UserNotFound),
    ],
)
async def test_write_for_an_account_erased_meanwhile_is_refused(
    real_stores: StoresUnderTest,
    database: Database,
    write: Write,
    erased: str,
    refusal: type[AcademyError],
) -> None:
    """Not an internal error; nothing is written."""
    ana = await real_stores.users.add(new("ana"))
    bea = await real_stores.users.add(new("bea"))
    user = ana if erased == "follower" else bea
    async with database.transaction() as connection:
        await begin_erasure(connection, user.id, NOON)
        await delete_account(connection, user.id)
        task = asyncio.create_task(_run(write(database, ana, bea)))
        await blocked(database)
    with pytest.raises(refusal):
        await task


async def _run(call: Awaitable[object]) -> object:
    return await call
