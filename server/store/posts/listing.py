"""Pages of posts.

A reader sees published posts and some drafts. Each state is one branch of a UNION ALL,
so that each branch reads an index in the order of the page, and stops.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.paging import MAX_OFFSET, PageRequest, Rows, Sort
from server.domain.posts.posts import Post, PostFilter, PostState, Reader
from server.store.connections.connect import Database
from server.store.keyset import Estimates, Keyset, capped_count, total_of
from server.store.posts.rows import (
    AUTHOR_NOT_DELETED,
    AUTHORS_NOT_DELETED,
    BASIC_COLUMNS,
    FULL_COLUMNS,
    posts_of,
)
from server.store.tables import posts as table

# The time of a post in lists, see Post.listed_at.
_LISTED_AT: dict[PostState, sa.Column[Any]] = {
    PostState.DRAFT: table.c.created_at,
    PostState.PUBLISHED: table.c.published_at,
}


@dataclass(frozen=True, slots=True)
class Branch:
    """The posts of one state that a page may hold."""

    state: PostState
    conditions: tuple[sa.ColumnElement[bool], ...]

    def sort_column(self, key: str) -> sa.Column[Any]:
        """Return the column that a sort key stands for in this state."""
        return _LISTED_AT[self.state] if key == "published_at" else table.c[key]

    @property
    def matching(self) -> sa.Select[Any]:
        """The rows, for counting."""
        return sa.select(sa.literal(1)).select_from(table).where(*self.conditions)


async def page(
    database: Database,
    estimates: Estimates,
    post_filter: PostFilter,
    reader: Reader,
    sort: Sort,
    request: PageRequest,
) -> Rows[Post]:
    """Return one page, read with at most three statements."""
    branches = branches_of(post_filter, reader)
    if not branches:
        return Rows([], False, 0, False)
    counts = [
        capped_count(branch.matching.where(AUTHORS_NOT_DELETED)) for branch in branches
    ]
    count: sa.ColumnElement[int] = (
        counts[0] if len(counts) == 1 else counts[0] + counts[1]
    )
    columns = FULL_COLUMNS if post_filter.with_body else BASIC_COLUMNS
    query = page_query(branches, columns, count, sort, request)
    # estimates are of published posts: a reader's own drafts are too few to matter
    key = post_filter, reader if post_filter.state is PostState.DRAFT else None

    async def read(connection: AsyncConnection) -> Rows[Post]:
        rows = (await connection.execute(query)).all()
        total = await total_of(
            connection,
            rows[0].total if rows else None,
            count,
            branches[0].matching,
            estimates,
            key,
        )
        items = await posts_of(connection, rows[: request.size])
        return Rows(items, len(rows) > request.size, total, total > MAX_OFFSET)

    return await database.reads(stale=request.allows_stale).read(read)


def branches_of(post_filter: PostFilter, reader: Reader) -> list[Branch]:
    """Return one branch for each state that the reader may see; at most two."""
    branches = []
    if post_filter.state in (None, PostState.PUBLISHED):
        branches.append(_branch(PostState.PUBLISHED, post_filter))
    if post_filter.state in (None, PostState.DRAFT):
        if reader.sees_all:
            branches.append(_branch(PostState.DRAFT, post_filter))
        elif reader.user_id and post_filter.author_id in (0, reader.user_id):
            own = table.c.user_id == reader.user_id
            branches.append(_branch(PostState.DRAFT, post_filter, own))
    return branches


def _branch(
    state: PostState, post_filter: PostFilter, *conditions: sa.ColumnElement[bool]
) -> Branch:
    matching = [table.c.state == state, *conditions]
    if post_filter.author_id:
        matching.append(table.c.user_id == post_filter.author_id)
    if post_filter.category_id:
        matching.append(table.c.category_id == post_filter.category_id)
    if post_filter.since:
        matching.append(_LISTED_AT[state] >= post_filter.since)
    if post_filter.until:
        matching.append(_LISTED_AT[state] < post_filter.until)
    return Branch(state, tuple(matching))


def page_query(
    branches: list[Branch],
    columns: tuple[sa.ColumnElement[Any], ...],
    count: sa.ColumnElement[int],
    sort: Sort,
    request: PageRequest,
) -> sa.Select[Any]:
    """Return the query of a page; each branch reads as many rows as may be needed."""
    max_rows = request.offset + request.size + 1
    selects = []
    for branch in branches:
        column = branch.sort_column(sort.key)
        keyset = Keyset(column, table.c.id, sort.descending)
        after = [keyset.after(request.after)] if request.after else []
        selects.append(
            sa.select(*columns, column.label("sort_value"))
            .where(*branch.conditions, AUTHOR_NOT_DELETED, *after)
            .order_by(*keyset.order)
            .limit(max_rows)
        )
    candidates = sa.union_all(*selects).subquery("candidates")
    keyset = Keyset(candidates.c.sort_value, candidates.c.id, sort.descending)
    return (
        sa.select(candidates, count.label("total"))
        .order_by(*keyset.order)
        .offset(request.offset)
        .limit(request.size + 1)
    )
