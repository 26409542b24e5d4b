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
from server.store.change_records import audit_change
from server.store.connections.connect import Database
from server.store.keyset import Estimates, Keyset, capped_count, total_of
from server.store.mapping import columns_of, entity_of
from server.store.tables import categories as table
from server.store.tables import posts
from server.store.write_transaction import write_transaction

_CATEGORY = columns_of(Category, table)
_TAKEN = {"uq_categories_slug": SlugTaken}


class PostgresCategories:
    """Stores categories; constraints decide races, not a look-up before."""

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
        """Write a category. Raises SlugTaken, ResponseExists."""
        statement = (
            sa.insert(table)
            .values(slug=slug, name=name, created_at=now, updated_at=now)
            .returning(*_CATEGORY)
        )
        async with write_transaction(self._database, idempotency, _TAKEN) as connection:
            row = (await connection.execute(statement)).one()
            category = entity_of(Category, row)
            await audit_change(connection)
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

        Raises CategoryNotFound, EtagMismatch, SlugTaken, ResponseExists.
        """
        async with write_transaction(self._database, idempotency, _TAKEN) as connection:
            category = await _locked(connection, category_id, edit.etag)
            if values := edit.changes(category):
                statement = (
                    sa.update(table)
                    .where(table.c.id == category_id)
                    .values(**values, updated_at=edit.now, version=table.c.version + 1)
                    .returning(*_CATEGORY)
                )
                row = (await connection.execute(statement)).one()
                category = entity_of(Category, row)
                await audit_change(connection)
            if idempotency:
                await idempotent_responses.write(connection, idempotency, category)
        return category

    async def delete(self, category_id: int, etag: str) -> None:
        """Delete a category, and remove it from soft-deleted posts.

        Raises CategoryNotFound, EtagMismatch, CategoryInUse.
        """
        in_use = {"fk_posts_category_id": lambda: CategoryInUse(category_id)}
        detach = (
            sa.update(posts)
            .where(posts.c.category_id == category_id, posts.c.deleted_at.is_not(None))
            .values(category_id=None)
        )
        async with write_transaction(self._database, None, in_use) as connection:
            await _locked(connection, category_id, etag)
            await connection.execute(detach)
            await connection.execute(sa.delete(table).where(table.c.id == category_id))
            await audit_change(connection)

    async def page(self, sort: Sort, request: PageRequest) -> Rows[Category]:
        """Return one page, read with at most three statements."""
        matching = sa.select(sa.literal(1)).select_from(table)
        count = capped_count(matching)
        keyset = Keyset(table.c[sort.key], table.c.id, sort.descending)
        query = matching.with_only_columns(*_CATEGORY, count.label("total"))

        async def read(connection: AsyncConnection) -> Rows[Category]:
            rows = (await connection.execute(keyset.page(query, request))).all()
            total = await total_of(
                connection,
                rows[0].total if rows else None,
                count,
                matching,
                self._estimates,
                None,
            )
            items = [entity_of(Category, row) for row in rows[: request.size]]
            return Rows(items, len(rows) > request.size, total, total > MAX_OFFSET)

        return await self._database.reads(stale=request.allows_stale).read(read)


async def _locked(connection: AsyncConnection, category_id: int, etag: str) -> Category:
    """Lock a category and return it. Raises CategoryNotFound, EtagMismatch."""
    query = sa.select(*_CATEGORY).where(table.c.id == category_id).with_for_update()
    row = (await connection.execute(query)).first()
    if row is None:
        raise CategoryNotFound(category_id)
    category = entity_of(Category, row)
    if etag and etag != category.etag:
        raise EtagMismatch(category.etag)
    return category
