"""A transaction that fails at any of its statements changes nothing."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
import sqlalchemy as sa

from server.domain.edits import Edit
from server.domain.errors import CategoryInUse
from server.domain.idempotency import IdempotencyRecord, RequestKey
from server.domain.members.profiles import Profile
from server.domain.members.settings import Theme, UserSettings
from server.domain.posts.posts import NewPost, PostState
from server.store.connections.connect import Database
from server.store.members.follows import PostgresFollows
from server.store.members.profiles import PostgresProfiles
from server.store.members.settings import PostgresSettings
from server.store.posts.categories import PostgresCategories
from server.store.posts.posts import PostgresPosts
from server.store.tables import metadata
from tests.fakes import NOON
from tests.store.conftest import StoresUnderTest
from tests.store.counting import Injected, counted, failing_at
from tests.store.test_users import new

ONCE: IdempotencyRecord[Any] = IdempotencyRecord(
    RequestKey("user:1", "/x/Y", "id"), b"print", NOON, lambda _: b"answer"
)


@dataclass(frozen=True, slots=True)
class Fixture:
    """Two accounts, a profile, a category and a post, by id."""

    database: Database
    ana: int
    bea: int
    category: int
    post: int


@pytest_asyncio.fixture
async def fixture(database: Database, real_stores: StoresUnderTest) -> Fixture:
    ana = await real_stores.users.add(new("ana"))
    bea = await real_stores.users.add(new("bea"))
    await PostgresProfiles(database).add(profile(ana.id))
    category = await PostgresCategories(database).add("numbers", "Numbers", NOON)
    other = NewPost(ana.id, "t", "b", category.id, PostState.DRAFT, NOON)
    post = await PostgresPosts(database).add(other)
    await PostgresFollows(database).add(ana.id, bea.id, NOON)
    await PostgresFollows(database).add(bea.id, ana.id, NOON)
    return Fixture(database, ana.id, bea.id, category.id, post.id)


def profile(user_id: int) -> Profile:
    return Profile(user_id, "Ana", "", "", "", "", NOON, NOON)


def change(**values: object) -> Edit:
    return Edit(values, "", NOON)


WRITES: dict[str, Callable[[Fixture], Awaitable[object]]] = {
    "profile": lambda s: PostgresProfiles(s.database).add(profile(s.bea), ONCE),
    "profile edit": lambda s: PostgresProfiles(s.database).edit(
        s.ana, change(bio="new"), ONCE
    ),
    "settings": lambda s: PostgresSettings(s.database).replace(
        s.ana, UserSettings(theme=Theme.DARK), "", NOON
    ),
    "unfollow": lambda s: PostgresFollows(s.database).remove(s.ana, s.bea, NOON),
    "category": lambda s: PostgresCategories(s.database).add("x", "X", NOON, ONCE),
    "category edit": lambda s: PostgresCategories(s.database).edit(
        s.category, change(name="Other"), ONCE
    ),
    "post": lambda s: PostgresPosts(s.database).add(
        NewPost(s.bea, "t", "b", s.category, PostState.PUBLISHED, NOON), ONCE
    ),
    "post published": lambda s: PostgresPosts(s.database).edit(
        s.post, change(state=PostState.PUBLISHED), ONCE
    ),
    "post deleted": lambda s: PostgresPosts(s.database).delete(s.post, "", NOON),
}


async def all_rows(database: Database) -> dict[str, list[str]]:
    """Return all rows of all tables as text."""
    async with database.reading() as connection:
        return {
            name: [
                row.text
                for row in await connection.execute(
                    sa.text(f"select r::text as text from {name} r order by 1")
                )
            ]
            for name in metadata.tables
        }


@pytest.mark.parametrize("name", WRITES)
async def test_failed_statement_leaves_no_changes(fixture: Fixture, name: str) -> None:
    """Each statement of a write fails in turn, then the write succeeds."""
    database, write = fixture.database, WRITES[name]
    before = await all_rows(database)
    number = 0
    while True:
        number += 1
        try:
            with failing_at(database, number) as statements:
                await write(fixture)
        except Injected:
            assert await all_rows(database) == before
        else:
            assert number == len(statements) + 1
            break
    assert number > 1
    assert await all_rows(database) != before


async def test_refused_category_deletion_changes_no_posts(fixture: Fixture) -> None:
    """The statement before the refused one is rolled back."""
    posts = PostgresPosts(fixture.database)
    draft = NewPost(fixture.ana, "t", "b", fixture.category, PostState.DRAFT, NOON)
    deleted = await posts.add(draft)
    await posts.delete(deleted.id, "", NOON)
    before = await all_rows(fixture.database)
    with (
        counted(fixture.database) as statements,
        pytest.raises(CategoryInUse),
    ):
        await PostgresCategories(fixture.database).delete(fixture.category, "")
    assert len(statements) == 3
    assert await all_rows(fixture.database) == before
