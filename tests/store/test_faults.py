"""A transaction that fails half-way leaves no trace, whichever statement it is."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
import sqlalchemy as sa

from server.domain.edits import Edit
from server.domain.idempotency import IdempotencyRecord, RequestKey
from server.domain.members.profiles import Profile
from server.domain.members.settings import Settings, Theme
from server.domain.posts.posts import NewPost, State
from server.store.connect import Database
from server.store.members.follows import PostgresFollows
from server.store.members.profiles import PostgresProfiles
from server.store.members.settings import PostgresSettings
from server.store.posts.categories import PostgresCategories
from server.store.posts.posts import PostgresPosts
from server.store.tables import metadata
from tests.fakes import NOON
from tests.store.conftest import Stores
from tests.store.counting import Injected, counted, failing_at
from tests.store.test_users import new

ONCE: IdempotencyRecord[Any] = IdempotencyRecord(
    RequestKey("user:1", "/x/Y", "id"), b"print", NOON, lambda _: b"answer"
)


@dataclass(frozen=True, slots=True)
class Scene:
    """Two accounts, a profile, a category and a post, by id."""

    database: Database
    ana: int
    bea: int
    category: int
    post: int


@pytest_asyncio.fixture
async def scene(database: Database, real_stores: Stores) -> Scene:
    ana = await real_stores.users.add(new("ana"))
    bea = await real_stores.users.add(new("bea"))
    await PostgresProfiles(database).add(profile(ana.id))
    category = await PostgresCategories(database).add("numbers", "Numbers", NOON)
    other = NewPost(ana.id, "t", "b", category.id, State.DRAFT, NOON)
    post = await PostgresPosts(database).add(other)
    await PostgresFollows(database).add(ana.id, bea.id, NOON)
    await PostgresFollows(database).add(bea.id, ana.id, NOON)
    return Scene(database, ana.id, bea.id, category.id, post.id)


def profile(user_id: int) -> Profile:
    return Profile(user_id, "Ana", "", "", "", "", NOON, NOON)


def change(**values: object) -> Edit:
    return Edit(values, "", NOON)


WRITES: dict[str, Callable[[Scene], Awaitable[object]]] = {
    "profile": lambda s: PostgresProfiles(s.database).add(profile(s.bea), ONCE),
    "profile edit": lambda s: PostgresProfiles(s.database).edit(
        s.ana, change(bio="new"), ONCE
    ),
    "settings": lambda s: PostgresSettings(s.database).replace(
        s.ana, Settings(theme=Theme.DARK), "", NOON
    ),
    "unfollow": lambda s: PostgresFollows(s.database).remove(s.ana, s.bea, NOON),
    "category": lambda s: PostgresCategories(s.database).add("x", "X", NOON, ONCE),
    "category edit": lambda s: PostgresCategories(s.database).edit(
        s.category, change(name="Other"), ONCE
    ),
    "post": lambda s: PostgresPosts(s.database).add(
        NewPost(s.bea, "t", "b", s.category, State.PUBLISHED, NOON), ONCE
    ),
    "post published": lambda s: PostgresPosts(s.database).edit(
        s.post, change(state=State.PUBLISHED), ONCE
    ),
    "post deleted": lambda s: PostgresPosts(s.database).delete(s.post, "", NOON),
}


async def everything(database: Database) -> dict[str, list[str]]:
    """Give every row there is, as text."""
    async with database.reading() as connection:
        return {
            name: [
                row[0]
                for row in await connection.execute(
                    sa.text(f"select r::text from {name} r order by 1")
                )
            ]
            for name in metadata.tables
        }


@pytest.mark.parametrize("name", WRITES)
async def test_failed_statement_leaves_no_changes(scene: Scene, name: str) -> None:
    """Each statement of a write fails in its turn; then it is done, once."""
    database, write = scene.database, WRITES[name]
    before = await everything(database)
    number = 0
    while True:
        number += 1
        try:
            with failing_at(database, number) as statements:
                await write(scene)
        except Injected:
            assert await everything(database) == before
        else:
            assert number == len(statements) + 1
            break
    assert number > 1
    assert await everything(database) != before


async def test_refused_category_deletion_changes_no_posts(scene: Scene) -> None:
    """Refused at its last statement, it takes the one before back."""
    posts = PostgresPosts(scene.database)
    more = NewPost(scene.ana, "t", "b", scene.category, State.DRAFT, NOON)
    gone = await posts.add(more)
    await posts.delete(gone.id, "", NOON)
    before = await everything(scene.database)
    with counted(scene.database) as statements, pytest.raises(Exception, match="stand"):
        await PostgresCategories(scene.database).delete(scene.category, "")
    assert len(statements) == 3
    assert await everything(scene.database) == before
