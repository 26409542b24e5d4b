"""Pages of posts.

What a reader may see is the published posts and some drafts. Each is a branch of its
own with one state, so that each reads an index in the order of the page and stops.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from server.domain.paging import MAX_OFFSET, PageRequest, Rows, Sort
from server.domain.posts.posts import Post, PostFilter, Reader, State
from server.store.connect import Database
from server.store.keyset import Estimates, Keyset, capped_count, counted
from server.store.posts.rows import (
    AUTHOR_NOT_DELETED,
    AUTHORS_NOT_DELETED,
    BRIEF,
    WHOLE,
    posts_of,
)
from server.store.tables import posts as table

Branch = list[sa.ColumnElement[bool]]


async def page(
    database: Database,
    estimates: Estimates,
    wanted: PostFilter,
    reader: Reader,
    sort: Sort,
    request: PageRequest,
) -> Rows[Post]:
    """Give one page, by at most three statements."""
    branches = branches_of(wanted, reader)
    if not branches:
        return Rows([], False, 0, False)
    rows = [sa.select(sa.literal(1)).select_from(table).where(*b) for b in branches]
    count: sa.ColumnElement[int] = capped_count(rows[0].where(AUTHORS_NOT_DELETED))
    for more in rows[1:]:
        count = count + capped_count(more.where(AUTHORS_NOT_DELETED))
    query = query_of(branches, WHOLE if wanted.whole else BRIEF, count, sort, request)
    async with database.reading() as connection:
        found = (await connection.execute(query)).all()
        known = found[0].total if found else None
        # of what everybody sees; a reader's own drafts are too few to matter
        key = wanted, reader if wanted.state is State.DRAFT else None
        total = await counted(connection, known, count, rows[0], estimates, key)
        items = await posts_of(connection, found[: request.size])
    return Rows(items, len(found) > request.size, total, total > MAX_OFFSET)


def branches_of(wanted: PostFilter, reader: Reader) -> list[Branch]:
    """Give the conditions of each branch; none where there is nothing to be seen."""
    common: Branch = []
    if wanted.author_id:
        common.append(table.c.user_id == wanted.author_id)
    if wanted.category_id:
        common.append(table.c.category_id == wanted.category_id)
    if wanted.since:
        common.append(table.c.created_at >= wanted.since)
    if wanted.until:
        common.append(table.c.created_at < wanted.until)
    branches = []
    if wanted.state in (None, State.PUBLISHED):
        branches.append([table.c.state == State.PUBLISHED, *common])
    if wanted.state in (None, State.DRAFT):
        drafts: Branch = [table.c.state == State.DRAFT, *common]
        if reader.sees_all:
            branches.append(drafts)
        elif reader.user_id and wanted.author_id in (0, reader.user_id):
            branches.append([table.c.user_id == reader.user_id, *drafts])
    return branches


def query_of(
    branches: list[Branch],
    columns: tuple[sa.ColumnElement[Any], ...],
    count: sa.ColumnElement[int],
    sort: Sort,
    request: PageRequest,
) -> sa.Select[Any]:
    """Give the page's rows; a branch gives as many as could stand on the page."""
    inner = Keyset(table.c[sort.key], table.c.id, sort.descending)
    behind = [inner.beyond(request.after)] if request.after else []
    most = request.offset + request.size + 1
    found = sa.union_all(
        *(
            sa.select(*columns)
            .where(*branch, AUTHOR_NOT_DELETED, *behind)
            .order_by(*inner.order)
            .limit(most)
            for branch in branches
        )
    ).subquery("found")
    outer = Keyset(found.c[sort.key], found.c.id, sort.descending)
    return (
        sa.select(found, count.label("total"))
        .order_by(*outer.order)
        .offset(request.offset)
        .limit(request.size + 1)
    )
