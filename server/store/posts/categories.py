"""Categories in Postgres."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.edits import Edit
from server.domain.errors import (
    CategoryInUse,
    CategoryNotFound,
    EtagMismatch,
    SlugTaken,
)
from server.domain.idempotency import IdempotencyRecord
from server.domain.paging import MAX_OFFSET, PageRequest, Rows, Sort
from server.domain.posts.categories import Category
from server.store import idempotent_responses
from server.store.connect import Database
from server.store.keyset import Estimates, Keyset, capped_count, counted
from server.store.tables import categories as table
from server.store.tables import posts
from server.store.writing import writing

_TAKEN = {"uq_categories_slug": SlugTaken}


class PostgresCategories:
    """Keeps categories; constraints decide races, not a look before."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._estimates = Estimates()

    async def add(
        self,
        slug: str,
        name: str,
        now: datetime,
        idempotency: IdempotencyRecord[Category] | None = None,
    ) -> Category:
        """Write a category. Raises SlugTaken, AnswerExists."""
        statement = (
            sa.insert(table)
            .values(slug=slug, name=name, created_at=now, updated_at=now)
            .returning(*table.c)
        )
        async with writing(self._database, idempotency, _TAKEN) as connection:
            category = Category(*(await connection.execute(statement)).one())
            if idempotency:
                await idempotent_responses.write(connection, idempotency, category)
        return category

    async def edit(
        self,
        category_id: int,
        edit: Edit,
        idempotency: IdempotencyRecord[Category] | None = None,
    ) -> Category:
        """Change a category.

        Raises CategoryNotFound, EtagMismatch, SlugTaken, AnswerExists.
        """
        async with writing(self._database, idempotency, _TAKEN) as connection:
            category = await _locked(connection, category_id, edit.etag)
            values = {
                name: value
                for name, value in edit.values.items()
                if getattr(category, name) != value
            }
            if values:
                statement = (
                    sa.update(table)
                    .where(table.c.id == category_id)
                    .values(**values, updated_at=edit.now, version=table.c.version + 1)
                    .returning(*table.c)
                )
                category = Category(*(await connection.execute(statement)).one())
            if idempotency:
                await idempotent_responses.write(connection, idempotency, category)
        return category

    async def delete(self, category_id: int, known: str) -> None:
        """Take a category away; deleted posts no longer stand in it.

        Raises CategoryNotFound, EtagMismatch, CategoryInUse.
        """
        in_use = {"fk_posts_category_id": lambda: CategoryInUse(category_id)}
        leave = (
            sa.update(posts)
            .where(posts.c.category_id == category_id, posts.c.deleted_at.is_not(None))
            .values(category_id=None)
        )
        async with writing(self._database, None, in_use) as connection:
            await _locked(connection, category_id, known)
            await connection.execute(leave)
            await connection.execute(sa.delete(table).where(table.c.id == category_id))

    async def page(self, sort: Sort, request: PageRequest) -> Rows[Category]:
        """Give one page, by at most three statements."""
        rows = sa.select(sa.literal(1)).select_from(table)
        count = capped_count(rows)
        keyset = Keyset(table.c[sort.key], table.c.id, sort.descending)
        query = keyset.turned(sa.select(*table.c, count), request)
        async with self._database.reading() as connection:
            found = (await connection.execute(query)).all()
            known = found[0][-1] if found else None
            total = await counted(connection, known, count, rows, self._estimates, None)
        items = [Category(*row[:-1]) for row in found[: request.size]]
        return Rows(items, len(found) > request.size, total, total > MAX_OFFSET)


async def _locked(
    connection: AsyncConnection, category_id: int, known: str
) -> Category:
    query = sa.select(table).where(table.c.id == category_id).with_for_update()
    row = (await connection.execute(query)).first()
    if row is None:
        raise CategoryNotFound(category_id)
    category = Category(*row)
    if known and known != category.etag:
        raise EtagMismatch(category.etag)
    return category
