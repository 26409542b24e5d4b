"""Posts in Postgres: the statements and indexes of a page, and writes."""

from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
import sqlalchemy as sa

from server.domain.accounts.users import User
from server.domain.edits import Edit
from server.domain.errors import InvalidFields, PostNotFound
from server.domain.paging import PageRequest, Position, Sort
from server.domain.posts.posts import NewPost, PostFilter, PostState, Reader
from server.store.connections.connect import Database
from server.store.connections.explain import Explain
from server.store.posts.categories import PostgresCategories
from server.store.posts.listing import branches_of, page_query
from server.store.posts.posts import PostgresPosts
from server.store.posts.rows import BASIC_COLUMNS
from tests.fakes import NOON
from tests.store.conftest import StoresUnderTest
from tests.store.counting import counted
from tests.store.test_users import new

ANYONE = Reader(0, sees_all=False)
NEWEST = Sort("published_at", descending=True)


@pytest_asyncio.fixture
async def ana(real_stores: StoresUnderTest) -> User:
    return await real_stores.users.add(new("ana"))


@pytest.fixture
def posts(database: Database) -> PostgresPosts:
    return PostgresPosts(database)


def new_post(author: User, number: int = 0, category_id: int = 0) -> NewPost:
    at = NOON + timedelta(seconds=number)
    return NewPost(
        author.id, f"t{number}", "body", category_id, PostState.PUBLISHED, at
    )


async def fill(database: Database, count: int, authors: int) -> None:
    """Write posts of `authors` authors in ten categories, by SQL."""
    for statement in (
        "insert into users (email, username, username_folded, hashed_password, role,"
        " created_at, updated_at) select 'f' || n, 'f' || n, 'f' || n, '', 1, now(),"
        " now() from generate_series(1, :authors) n",
        "insert into categories (slug, name, created_at, updated_at)"
        " select 'c' || n, 'c', now(), now() from generate_series(1, 10) n",
        "insert into posts (user_id, category_id, title, body, state, created_at,"
        " updated_at) select u.id, c.id, 't' || n, 'body', 2,"
        " now() - make_interval(secs => n), now() from generate_series(1, :count) n"
        " join users u on u.username = 'f' || (1 + n % :authors)"
        " join categories c on c.slug = 'c' || (1 + n % 10)",
    ):
        values = {"authors": authors, "count": count}
        used = {name: v for name, v in values.items() if f":{name}" in statement}
        async with database.transaction() as connection:
            await connection.execute(sa.text(statement), used)
    async with database.alone() as connection:
        await connection.execute(sa.text("vacuum analyze"))


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("post_filter", [PostFilter(), PostFilter(with_body=True)])
async def test_page_costs_two_statements(
    database: Database, posts: PostgresPosts, size: int, post_filter: PostFilter
) -> None:
    """Whatever the number of rows, authors and categories: no N+1."""
    await fill(database, 300, 30)
    with counted(database) as statements:
        rows = await posts.page(post_filter, ANYONE, NEWEST, PageRequest(size))
    assert len(rows.items) == size
    assert len({post.author.id for post in rows.items}) == min(size, 30)
    assert all(post.category for post in rows.items)
    assert len(statements) == 2


async def test_page_with_estimated_total_costs_three_statements(
    database: Database, posts: PostgresPosts
) -> None:
    """The third one asks the planner for the total, which is an estimate."""
    await fill(database, 12_000, 10)
    with counted(database) as statements:
        rows = await posts.page(PostFilter(), ANYONE, NEWEST, PageRequest(20))
    assert rows.total_estimated
    assert rows.total == pytest.approx(12_000, rel=0.1)
    assert len(statements) == 3


async def test_empty_page_costs_two_statements(
    database: Database, posts: PostgresPosts
) -> None:
    with counted(database) as statements:
        rows = await posts.page(PostFilter(), ANYONE, NEWEST, PageRequest(20))
    assert (list(rows.items), rows.total) == ([], 0)
    assert len(statements) == 2


@pytest.mark.parametrize(
    ("post_filter", "sort_key", "index"),
    [
        (PostFilter(), "created_at", "idx_posts_created_at"),
        (PostFilter(author_id=5), "created_at", "idx_posts_user_id"),
        (PostFilter(category_id=5), "created_at", "idx_posts_category_id"),
        (PostFilter(), "published_at", "idx_posts_published_at"),
        (PostFilter(since=NOON), "published_at", "idx_posts_published_at"),
        (PostFilter(author_id=5), "published_at", "idx_posts_user_id_published_at"),
        (
            PostFilter(category_id=5),
            "published_at",
            "idx_posts_category_id_published_at",
        ),
    ],
)
async def test_lists_read_an_index_in_order(
    database: Database, post_filter: PostFilter, sort_key: str, index: str
) -> None:
    """No sort, and no row is read that is not on the page."""
    await fill(database, 5_000, 10)
    after = Position(NOON.isoformat(), 1)
    query = page_query(  # the statement that the store sends
        branches_of(post_filter, ANYONE),
        BASIC_COLUMNS,
        sa.literal(0),
        Sort(sort_key, descending=True),
        PageRequest(20, after=after),
    )
    async with database.reading() as connection:
        plan = (await connection.execute(Explain(query))).scalar_one()
    nodes = list(plan_nodes(plan[0]["Plan"]))
    assert index in {node.get("Index Name") for node in nodes}
    assert "Seq Scan" not in {
        node["Node Type"] for node in nodes if node.get("Relation Name") == "posts"
    }


def plan_nodes(node: dict[str, Any]) -> Any:
    yield node
    for inner in node.get("Plans", ()):
        yield from plan_nodes(inner)


async def test_post_in_an_unknown_category_is_refused(
    database: Database, posts: PostgresPosts, ana: User
) -> None:
    """The foreign key decides; the error names the field."""
    with pytest.raises(InvalidFields) as caught:
        await posts.add(new_post(ana, category_id=9))
    assert caught.value.violations[0].field == "categoryId"
    post = await posts.add(new_post(ana))
    with pytest.raises(InvalidFields) as caught:
        await posts.edit(post.id, Edit({"category_id": 9}, "", NOON))
    assert caught.value.violations[0].field == "post.categoryId"
    assert await posts.by_id(post.id) == post


async def test_edit_with_equal_values_changes_nothing(
    posts: PostgresPosts, ana: User
) -> None:
    post = await posts.add(new_post(ana))
    same = Edit({"title": post.title, "category_id": 0}, post.etag, NOON)
    assert await posts.edit(post.id, same) == post


async def test_deleted_post_is_not_found(posts: PostgresPosts, ana: User) -> None:
    post = await posts.add(new_post(ana))
    await posts.delete(post.id, post.etag, NOON)
    assert await posts.by_id(post.id) is None
    assert list(await posts.after(0, 9)) == []
    for call in (
        posts.delete(post.id, "", NOON),
        posts.edit(post.id, Edit({"title": "x"}, "", NOON)),
    ):
        with pytest.raises(PostNotFound):
            await call


async def test_deleted_category_is_removed_from_deleted_posts(
    database: Database, posts: PostgresPosts, ana: User
) -> None:
    categories = PostgresCategories(database)
    category = await categories.add("numbers", "Numbers", NOON)
    deleted = await posts.add(new_post(ana, 1, category.id))
    await posts.delete(deleted.id, "", NOON)
    await categories.delete(category.id, category.etag)
    query = sa.text("select deleted_at is not null from posts where id = :id")
    async with database.reading() as connection:
        row = await connection.execute(query, {"id": deleted.id})
        assert row.scalar_one() is True
