"""Posts in Postgres."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from functools import partial

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.edits import Edit, etag
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
from server.domain.posts.posts import NewPost, Post, PostFilter, Reader, State
from server.store import idempotent_responses
from server.store.connect import Database
from server.store.keyset import Estimates
from server.store.outbox import enqueue
from server.store.posts import listing
from server.store.posts.rows import (
    AUTHOR_NOT_DELETED,
    NOT_DELETED,
    WHOLE,
    Row,
    posts_of,
)
from server.store.tables import posts as table
from server.store.writing import Refusals, writing

DELETED = 3  # a state that no list asks for


class PostgresPosts:
    """Keeps posts; the deleted, and those of deleted accounts, are not shown."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._estimates = Estimates()

    async def add(
        self, new: NewPost, idempotency: IdempotencyRecord[Post] | None = None
    ) -> Post:
        """Write a post.

        Raises InvalidFields if there is no such category, AnswerExists.
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
            .returning(*WHOLE)
        )
        async with self._writing(idempotency, "categoryId") as connection:
            rows = (await connection.execute(statement)).all()
            (post,) = await posts_of(connection, rows)
            await _tell(connection, new.created_at, None, rows[0])
            if idempotency:
                await idempotent_responses.write(
                    connection, idempotency, post, about=[new.author_id]
                )
        return post

    async def by_id(self, post_id: int) -> Post | None:
        """Give the post with this id."""
        query = sa.select(*WHOLE).where(
            table.c.id == post_id, NOT_DELETED, AUTHOR_NOT_DELETED
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
            found = await posts_of(connection, rows)
        return found[0] if found else None

    async def edit(
        self,
        post_id: int,
        edit: Edit,
        idempotency: IdempotencyRecord[Post] | None = None,
    ) -> Post:
        """Change a post.

        Raises PostNotFound, EtagMismatch, InvalidFields if there is no such category,
        AnswerExists.
        """
        async with self._writing(idempotency, "post.categoryId") as connection:
            row = await _locked(connection, post_id, edit.etag)
            values = _changes(row, edit.values)
            if values:
                row = await _changed(connection, row, edit.now, values)
            (post,) = await posts_of(connection, [row])
            if idempotency:
                await idempotent_responses.write(
                    connection, idempotency, post, about=[post.author.id]
                )
        return post

    async def delete(self, post_id: int, known: str, now: datetime) -> None:
        """Delete a post softly. Raises PostNotFound, EtagMismatch."""
        async with self._database.transaction() as connection:
            row = await _locked(connection, post_id, known)
            values = {"state": DELETED, "deleted_at": now}
            await _changed(connection, row, now, values)

    async def page(
        self, wanted: PostFilter, reader: Reader, sort: Sort, request: PageRequest
    ) -> Rows[Post]:
        """Give one page, by at most three statements."""
        return await listing.page(
            self._database, self._estimates, wanted, reader, sort, request
        )

    async def after(self, post_id: int, size: int) -> Sequence[Post]:
        """Give the next posts above an id, drafts too, in the order of ids."""
        above = sa.select(*WHOLE).where(
            table.c.id > post_id, NOT_DELETED, AUTHOR_NOT_DELETED
        )
        query = above.order_by(table.c.id).limit(size)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
            return await posts_of(connection, rows)

    def _writing(
        self, idempotency: IdempotencyRecord[Post] | None, field: str
    ) -> AbstractAsyncContextManager[AsyncConnection]:
        unknown = Violation(field, "there is no such category", "category_id.known")
        refusals: Refusals = {
            "fk_posts_category_id": partial(InvalidFields, [unknown]),
            "fk_posts_user_id": partial(TokenInvalid, "the account is erased"),
        }
        return writing(self._database, idempotency, refusals)


async def _locked(connection: AsyncConnection, post_id: int, known: str) -> Row:
    """Give a post that nobody else changes meanwhile.

    Raises PostNotFound, EtagMismatch.
    """
    query = sa.select(*WHOLE).where(
        table.c.id == post_id, NOT_DELETED, AUTHOR_NOT_DELETED
    )
    row = (await connection.execute(query.with_for_update(of=table))).first()
    if row is None:
        raise PostNotFound(post_id)
    if known and known != etag(row.version):
        raise EtagMismatch(etag(row.version))
    return row


def _changes(row: Row, values: Mapping[str, object]) -> dict[str, object]:
    """Give the columns that an edit really changes; no category is NULL there."""
    wanted = dict(values)
    if "category_id" in wanted:
        wanted["category_id"] = wanted["category_id"] or None
    return {n: value for n, value in wanted.items() if getattr(row, n) != value}


async def _changed(
    connection: AsyncConnection,
    before: Row,
    now: datetime,
    values: Mapping[str, object],
) -> Row:
    """Change a post that is locked, and write what follows from it."""
    statement = (
        sa.update(table)
        .where(table.c.id == before.id)
        .values(**values, updated_at=now, version=table.c.version + 1)
        .returning(*WHOLE)
    )
    after = (await connection.execute(statement)).one()
    await _tell(connection, now, before, after)
    return after


async def _tell(
    connection: AsyncConnection, now: datetime, before: Row | None, after: Row
) -> None:
    """Tell of a post that comes into, or goes out of, what members see."""
    was = before is not None and before.state == State.PUBLISHED
    if was is not (after.state == State.PUBLISHED):
        kind = EventType.POST_WITHDRAWN if was else EventType.POST_PUBLISHED
        told = NewEntry(kind, after.user_id, payload={"post": after.id})
        await enqueue(connection, now, told)
