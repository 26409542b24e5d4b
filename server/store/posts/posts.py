"""Posts in Postgres."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import datetime
from functools import partial

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.edits import Edit, etag_of
from server.domain.errors import (
    EtagMismatch,
    InvalidFields,
    PostNotFound,
    TokenInvalid,
    Violation,
)
from server.domain.idempotency import IdempotencyRecord
from server.domain.outbox.entries import EventType, NewEntry
from server.domain.paging import PageRequest, Rows, Sort
from server.domain.posts.posts import NewPost, Post, PostFilter, PostState, Reader
from server.store import idempotent_responses
from server.store.change_records import record
from server.store.connections.connect import Database
from server.store.keyset import Estimates
from server.store.posts import listing
from server.store.posts.rows import (
    AUTHOR_NOT_DELETED,
    FULL_COLUMNS,
    NOT_DELETED,
    Row,
    posts_of,
)
from server.store.tables import posts as table
from server.store.write_transaction import ConstraintErrors, write_transaction

DELETED = 3  # the state of soft-deleted posts; no list selects it


class PostgresPosts:
    """Stores posts. Deleted ones, and those of deleted accounts, are not found."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._estimates = Estimates()

    async def add(
        self, new: NewPost, idempotency: IdempotencyRecord[Post] | None = None
    ) -> Post:
        """Write a post.

        Raises InvalidFields for an unknown category, ResponseExists.
        """
        statement = (
            sa.insert(table)
            .values(
                user_id=new.author_id,
                category_id=new.category_id or None,
                title=new.title,
                body=new.body,
                state=new.state,
                created_at=new.created_at,
                updated_at=new.created_at,
            )
            .returning(*FULL_COLUMNS)
        )
        async with self._writing(idempotency, "categoryId") as connection:
            rows = (await connection.execute(statement)).all()
            (post,) = await posts_of(connection, rows)
            await _enqueue_event(connection, new.created_at, None, rows[0])
            if idempotency:
                await idempotent_responses.write(
                    connection, idempotency, post, about=[new.author_id]
                )
        return post

    async def by_id(self, post_id: int) -> Post | None:
        """Return the post with this id, or None."""
        query = sa.select(*FULL_COLUMNS).where(
            table.c.id == post_id, NOT_DELETED, AUTHOR_NOT_DELETED
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
            posts = await posts_of(connection, rows)
        return posts[0] if posts else None

    async def edit(
        self,
        post_id: int,
        edit: Edit,
        idempotency: IdempotencyRecord[Post] | None = None,
    ) -> Post:
        """Change a post.

        Raises PostNotFound, EtagMismatch, InvalidFields for an unknown category,
        ResponseExists.
        """
        async with self._writing(idempotency, "post.categoryId") as connection:
            row = await _locked(connection, post_id, edit.etag)
            values = _changes(row, edit)
            if values:
                row = await _changed(connection, row, edit.now, values)
            (post,) = await posts_of(connection, [row])
            if idempotency:
                await idempotent_responses.write(
                    connection, idempotency, post, about=[post.author.id]
                )
        return post

    async def delete(self, post_id: int, etag: str, now: datetime) -> None:
        """Soft-delete a post. Raises PostNotFound, EtagMismatch."""
        async with self._database.transaction() as connection:
            row = await _locked(connection, post_id, etag)
            values = {"state": DELETED, "deleted_at": now}
            await _changed(connection, row, now, values)

    async def page(
        self, post_filter: PostFilter, reader: Reader, sort: Sort, request: PageRequest
    ) -> Rows[Post]:
        """Return one page, read with at most three statements."""
        return await listing.page(
            self._database, self._estimates, post_filter, reader, sort, request
        )

    async def after(self, post_id: int, size: int) -> Sequence[Post]:
        """Return the next `size` posts with a greater id, drafts too, in id order.

        A replica may serve them.
        """
        following = sa.select(*FULL_COLUMNS).where(
            table.c.id > post_id, NOT_DELETED, AUTHOR_NOT_DELETED
        )
        query = following.order_by(table.c.id).limit(size)

        async def read(connection: AsyncConnection) -> Sequence[Post]:
            rows = (await connection.execute(query)).all()
            return await posts_of(connection, rows)

        return await self._database.reads(stale=True).read(read)

    def _writing(
        self, idempotency: IdempotencyRecord[Post] | None, field: str
    ) -> AbstractAsyncContextManager[AsyncConnection]:
        unknown = Violation(field, "is not the id of a category", "category_id.known")
        violated: ConstraintErrors = {
            "fk_posts_category_id": partial(InvalidFields, [unknown]),
            "fk_posts_user_id": partial(TokenInvalid, "the account is erased"),
        }
        return write_transaction(self._database, idempotency, violated)


async def _locked(connection: AsyncConnection, post_id: int, etag: str) -> Row:
    """Lock a post and return its row. Raises PostNotFound, EtagMismatch."""
    query = sa.select(*FULL_COLUMNS).where(
        table.c.id == post_id, NOT_DELETED, AUTHOR_NOT_DELETED
    )
    row = (await connection.execute(query.with_for_update(of=table))).first()
    if row is None:
        raise PostNotFound(post_id)
    if etag and etag != etag_of(row.version):
        raise EtagMismatch(etag_of(row.version))
    return row


def _changes(row: Row, edit: Edit) -> dict[str, object]:
    """Return the columns whose values differ; no category is NULL in the table."""
    values = dict(edit.values)
    if "category_id" in values:
        values["category_id"] = values["category_id"] or None
    return replace(edit, values=values).changes(row)


async def _changed(
    connection: AsyncConnection,
    before: Row,
    now: datetime,
    values: Mapping[str, object],
) -> Row:
    """Change a locked post, and write the event that follows from it."""
    statement = (
        sa.update(table)
        .where(table.c.id == before.id)
        .values(**values, updated_at=now, version=table.c.version + 1)
        .returning(*FULL_COLUMNS)
    )
    after = (await connection.execute(statement)).one()
    await _enqueue_event(connection, now, before, after)
    return after


async def _enqueue_event(
    connection: AsyncConnection, now: datetime, before: Row | None, after: Row
) -> None:
    """Write an event if the post becomes visible to members, or no longer is."""
    was_published = before is not None and before.state == PostState.PUBLISHED
    if was_published is not (after.state == PostState.PUBLISHED):
        kind = EventType.POST_WITHDRAWN if was_published else EventType.POST_PUBLISHED
        event = NewEntry(kind, after.user_id, payload={"post": after.id})
        await record(connection, now, event)
