"""Fills a database for load tests by COPY.

A batch of members, with their sessions, posts and follows, is one transaction. What
was committed before an interruption is consistent; only its statistics are missing:
rows of `user_analytics`, which follow at the end, and those of the planner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from server.store.connections.connect import Database
from server.store.seeding.members import MemberRows, Row
from server.store.tables import (
    categories,
    follows,
    posts,
    sessions,
    user_analytics,
    users,
)

BATCH_SIZE = 5_000  # members
CATEGORIES = 10
TABLES = (users, sessions, categories, posts, follows, user_analytics)
USER_COLUMNS = (
    "id",
    "email",
    "username",
    "username_folded",
    "hashed_password",
    "role",
    "is_active",
    "email_verified",
    "created_at",
    "updated_at",
)
SESSION_COLUMNS = (
    "id",
    "user_id",
    "token_hash",
    "parent_hash",
    "nonce",
    "created_at",
    "last_used_at",
    "expires_at",
    "address",
    "device",
    "ended_at",
)
POST_COLUMNS = (
    "user_id",
    "category_id",
    "title",
    "body",
    "state",
    "created_at",
    "updated_at",
    "published_at",
)
FOLLOW_COLUMNS = ("follower_id", "followed_id", "created_at")
COUNT_COLUMNS = (
    "user_id",
    "posts",
    "followers",
    "last_seen_at",
    "counted_at",
    "stale",
)
# From the sequence, so that a running service may create accounts meanwhile.
_NEXT_IDS = sa.text(
    "select nextval(pg_get_serial_sequence('users', 'id'))"
    " from generate_series(1, :count)"
)


async def has_users(database: Database) -> bool:
    """Return whether there are accounts. Raises StoreUnavailable."""
    async with database.reading() as connection:
        row = await connection.execute(sa.select(users.c.id).limit(1))
        return row.first() is not None


async def seed(
    database: Database,
    rows: MemberRows,
    count: int,
    now: datetime,
    report: Callable[[int], None] = lambda _: None,
    batch_size: int = BATCH_SIZE,
) -> None:
    """Write `count` members with what belongs to them, then analyze the tables.

    `report` gets the number of members of each batch. Raises StoreUnavailable.
    """
    category_ids = await _categories(database, now)
    async with database.session() as connection:
        for first in range(0, count, batch_size):
            size = min(batch_size, count - first)
            await _copy_batch(connection, rows, size, category_ids)
            await connection.commit()
            report(size)
        for first in range(0, count, batch_size):
            counts = rows.counts(first, min(first + batch_size, count))
            await _copy(connection, user_analytics, COUNT_COLUMNS, counts)
    names = ", ".join(table.name for table in TABLES)
    async with database.alone() as connection:
        # with the visibility map, without which index-only scans read the tables
        await connection.execute(sa.text(f"vacuum (analyze) {names}"))


async def sizes(database: Database) -> Sequence[tuple[str, int, int]]:
    """Return name, number of rows and bytes, with indexes, of each table."""
    queries = [
        sa.select(
            sa.literal(table.name),
            sa.select(sa.func.count()).select_from(table).scalar_subquery(),
            sa.func.pg_total_relation_size(table.name),
        )
        for table in TABLES
    ]
    async with database.alone() as connection:
        rows = await connection.execute(sa.union_all(*queries))
        return [(row[0], row[1], row[2]) for row in rows]


async def _categories(database: Database, now: datetime) -> Sequence[int]:
    """Return the ids of the categories of the posts; create those that are missing."""
    slugs = [f"bench-{number}" for number in range(1, CATEGORIES + 1)]
    rows = [
        {"slug": slug, "name": slug, "created_at": now, "updated_at": now}
        for slug in slugs
    ]
    query = sa.select(categories.c.id).where(categories.c.slug.in_(slugs))
    async with database.transaction() as connection:
        await connection.execute(insert(categories).on_conflict_do_nothing(), rows)
        return (await connection.execute(query)).scalars().all()


async def _copy_batch(
    connection: AsyncConnection,
    rows: MemberRows,
    size: int,
    category_ids: Sequence[int],
) -> None:
    ids = (await connection.execute(_NEXT_IDS, {"count": size})).scalars().all()
    members = rows.add_members(ids)
    await _copy(connection, users, USER_COLUMNS, rows.users(members))
    await _copy(connection, sessions, SESSION_COLUMNS, rows.sessions(members))
    await _copy(connection, posts, POST_COLUMNS, rows.posts(members, category_ids))
    await _copy(connection, follows, FOLLOW_COLUMNS, rows.follows(members))


async def _copy(
    connection: AsyncConnection,
    table: sa.Table,
    columns: Sequence[str],
    rows: Iterable[Row],
) -> None:
    """Copy rows in the transaction of the connection, if it has begun one."""
    raw: Any = await connection.get_raw_connection()
    await raw.driver_connection.copy_records_to_table(
        table.name, columns=columns, records=rows
    )
