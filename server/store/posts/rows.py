"""Rows of posts to entities; one more statement reads their authors and categories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.posts.categories import Category
from server.domain.posts.posts import EXCERPT_LENGTH, Author, Post, PostState
from server.store.accounts.deleted import is_not_deleted
from server.store.mapping import columns_of, entity_of
from server.store.tables import categories, users
from server.store.tables import posts as table

Row = Any  # with FULL_COLUMNS or BASIC_COLUMNS; SQLAlchemy types rows by position
_COMMON = (
    table.c.id,
    table.c.user_id,
    table.c.title,
    sa.func.left(table.c.body, EXCERPT_LENGTH).label("excerpt"),
    table.c.category_id,
    table.c.state,
    table.c.created_at,
    table.c.updated_at,
    table.c.published_at,
    table.c.version,
)
FULL_COLUMNS = (*_COMMON, table.c.body)
BASIC_COLUMNS = (*_COMMON, sa.literal("", sa.Text).label("body"))
_CATEGORY = columns_of(Category, categories)

AUTHOR_NOT_DELETED = ~sa.exists().where(
    users.c.id == table.c.user_id, users.c.deleted_at.is_not(None)
)
# the same condition, for counting many rows
AUTHORS_NOT_DELETED = is_not_deleted(table.c.user_id)
NOT_DELETED = table.c.deleted_at.is_(None)


async def posts_of(connection: AsyncConnection, rows: Sequence[Row]) -> list[Post]:
    """Return the posts of rows, with one more statement for all of them."""
    if not rows:
        return []
    authors, categories_by_id = await _related(
        connection,
        {row.user_id for row in rows},
        {row.category_id for row in rows if row.category_id},
    )
    return [
        entity_of(
            Post,
            row,
            author=authors[row.user_id],
            category=categories_by_id.get(row.category_id),
            state=PostState(row.state),
        )
        for row in rows
    ]


async def _related(
    connection: AsyncConnection, author_ids: set[int], category_ids: set[int]
) -> tuple[dict[int, Author], dict[int, Category]]:
    """Return authors and categories by id, read with one statement.

    A full join on `false` puts both kinds of rows side by side, in columns of their
    own.
    """
    authors = (
        sa.select(users.c.id, users.c.username)
        .where(_any_of(users.c.id, author_ids))
        .subquery("authors")
    )
    of_posts = (
        sa.select(*_CATEGORY)
        .where(_any_of(categories.c.id, category_ids))
        .subquery("of_posts")
    )
    query = sa.select(
        authors.c.id.label("author_id"), authors.c.username, *of_posts.c
    ).select_from(authors.outerjoin(of_posts, sa.false(), full=True))
    rows = (await connection.execute(query)).all()
    return (
        {
            row.author_id: Author(row.author_id, row.username)
            for row in rows
            if row.author_id
        },
        {row.id: entity_of(Category, row) for row in rows if row.id},
    )


def _any_of(column: sa.ColumnElement[int], ids: set[int]) -> sa.ColumnElement[bool]:
    """Return a condition with the same statement text for any number of ids."""
    return column == sa.any_(sa.literal(sorted(ids), ARRAY(sa.BigInteger)))
