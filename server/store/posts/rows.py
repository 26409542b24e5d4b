"""Rows of posts, and what belongs to them: one statement more, however many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.posts.categories import Category
from server.domain.posts.posts import EXCERPT, Author, Post, State
from server.store.tables import categories, users
from server.store.tables import posts as table

Row = Any  # of WHOLE or BRIEF; SQLAlchemy types rows by place, not by name
_EXCERPT = sa.func.left(table.c.body, EXCERPT).label("excerpt")
_REST = (
    _EXCERPT,
    table.c.category_id,
    table.c.state,
    table.c.created_at,
    table.c.updated_at,
    table.c.version,
)
_FIRST = (table.c.id, table.c.user_id, table.c.title)
WHOLE = (*_FIRST, table.c.body, *_REST)
BRIEF = (*_FIRST, sa.literal("", sa.Text).label("body"), *_REST)

# few are deleted at a time: asking for them costs less than asking for the others
_GONE = (
    sa.select(users.c.id)
    .where(users.c.deleted_at.is_not(None))
    .cte("gone")
    # else the planner may walk through all users, expecting to find one soon
    .prefix_with("MATERIALIZED", dialect="postgresql")
)
AUTHOR_NOT_DELETED = ~sa.exists().where(
    users.c.id == table.c.user_id, users.c.deleted_at.is_not(None)
)
# the same for many rows at once
AUTHORS_NOT_DELETED = ~sa.exists().where(_GONE.c.id == table.c.user_id)
NOT_DELETED = table.c.deleted_at.is_(None)


async def posts_of(connection: AsyncConnection, rows: Sequence[Row]) -> list[Post]:
    """Give the posts in rows of WHOLE or BRIEF, by one statement for all of them."""
    if not rows:
        return []
    authors, found = await _related(
        connection,
        {row.user_id for row in rows},
        {row.category_id for row in rows if row.category_id},
    )
    return [
        Post(
            id=row.id,
            author=authors[row.user_id],
            title=row.title,
            body=row.body,
            excerpt=row.excerpt,
            category=found.get(row.category_id),
            state=State(row.state),
            created_at=row.created_at,
            updated_at=row.updated_at,
            version=row.version,
        )
        for row in rows
    ]


async def _related(
    connection: AsyncConnection, author_ids: set[int], category_ids: set[int]
) -> tuple[dict[int, Author], dict[int, Category]]:
    """Give authors and categories by id; both lie in rows of the same columns."""
    authors = sa.select(
        sa.false().label("is_category"),
        users.c.id,
        users.c.username,
        sa.literal("", sa.Text),
        users.c.created_at,
        users.c.updated_at,
        users.c.version,
    ).where(_among(users.c.id, author_ids))
    standing = sa.select(sa.true(), *categories.c).where(
        _among(categories.c.id, category_ids)
    )
    found = (await connection.execute(sa.union_all(authors, standing))).all()
    return (
        {row[1]: Author(row[1], row[2]) for row in found if not row.is_category},
        {row[1]: Category(*row[1:]) for row in found if row.is_category},
    )


def _among(column: sa.ColumnElement[int], ids: set[int]) -> sa.ColumnElement[bool]:
    """Give a condition whose text, and so its plan, is the same for any number."""
    return column == sa.any_(sa.literal(sorted(ids), ARRAY(sa.BigInteger)))
