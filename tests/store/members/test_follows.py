"""Following in Postgres, while one of the two is erased."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime

import pytest

from server.domain.accounts.users import User
from server.domain.errors import AcademyError, TokenInvalid, UserNotFound
from server.domain.members.profiles import Profile
from server.domain.posts.posts import NewPost, State
from server.store.accounts.erasure import begin_erasure, delete_account
from server.store.connect import Database
from server.store.members.follows import PostgresFollows
from server.store.members.profiles import PostgresProfiles
from server.store.posts.posts import PostgresPosts
from tests.fakes import NOON
from tests.store.conftest import Stores
from tests.store.test_sessions import blocked
from tests.store.test_users import new

Write = Callable[[Database, User, User], Awaitable[object]]


def follow(database: Database, who: User, whom: User) -> Awaitable[object]:
    return PostgresFollows(database).add(who.id, whom.id, NOON)


def post(database: Database, who: User, whom: User) -> Awaitable[object]:
    made = NewPost(who.id, "Title", "body", 0, State.PUBLISHED, NOON)
    return PostgresPosts(database).add(made)


def profile(database: Database, who: User, whom: User) -> Awaitable[object]:
    made = a_profile(who.id, NOON)
    return PostgresProfiles(database).add(made)


def a_profile(user_id: int, now: datetime) -> Profile:
    return Profile(user_id, "Ana", "", "", "", "", now, now, 1)


@pytest.mark.parametrize(
    ("write", "erased", "refusal"),
    [
        (follow, "who", TokenInvalid),
        (follow, "whom", UserNotFound),
        (post, "who", TokenInvalid),
        (profile, "who", UserNotFound),
    ],
)
async def test_who_is_erased_meanwhile_is_gone(
    real_stores: Stores,
    database: Database,
    write: Write,
    erased: str,
    refusal: type[AcademyError],
) -> None:
    """A refusal, not an internal error, and nothing is written."""
    ana = await real_stores.users.add(new("ana"))
    bea = await real_stores.users.add(new("bea"))
    gone = ana if erased == "who" else bea
    async with database.transaction() as connection:
        await begin_erasure(connection, gone.id, NOON)
        await delete_account(connection, gone.id)
        writing = asyncio.create_task(_run(write(database, ana, bea)))
        await blocked(database)
    with pytest.raises(refusal):
        await writing


async def _run(work: Awaitable[object]) -> object:
    return await work
