"""Lists of 1,000,000 posts against the first page of 10,000: cost must not grow."""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import orjson
import sqlalchemy as sa

from blatam.post.v1 import post_pb2 as pb
from blatam.post.v1.post_pb2_grpc import PostServiceStub
from server.domain.credentials.secret_key import SecretKey
from server.domain.paging import PageRequest, PageTokens, Position, Sort
from server.domain.posts.posts import PostFilter, Reader
from server.store.connections.connect import Database
from server.store.posts.posts import PostgresPosts
from tests.load.row import ResultRow
from tests.load.service import Service, running
from tests.store.counting import counted

FEW = 10_000
MANY = int(os.environ.get("BENCH_POSTS", "1000000"))
POSTS_OF_AN_AUTHOR = 100
CATEGORIES = 10
ROUNDS = 15
CALLS = 20
SIZE = 20
MAX_RATIO = 1.2
MAX_STATEMENTS = 3  # the page, its authors and categories, the total's estimate
NEWEST = Sort("published_at", descending=True)
FILL = (
    "insert into users (email, username, username_folded, hashed_password, role,"
    " created_at, updated_at) select 'f' || n, 'f' || n, 'f' || n, '', 1, now(), now()"
    " from generate_series(1, :authors) n",
    "insert into categories (slug, name, created_at, updated_at)"
    " select 'c' || n, 'c' || n, now(), now() from generate_series(1, :categories) n",
    "with a as (select min(id) as first from users where username = 'f1'),"
    " c as (select min(id) as first from categories)"
    " insert into posts (user_id, category_id, title, body, state, created_at,"
    " updated_at) select a.first + n % :authors, c.first + n % :categories, 't' || n,"
    " repeat('body ', 40), 2, now() - make_interval(secs => n), now()"
    " from generate_series(1, :posts) n, a, c",
)


@dataclass(frozen=True, slots=True)
class Dataset:
    """A service with posts in it."""

    service: Service
    database: Database
    posts: Any
    author: int
    category: int

    async def list(self, request: pb.ListPostsRequest) -> pb.ListPostsResponse:
        """List posts as ana."""
        metadata = tuple(self.service.bearer.items())
        page: pb.ListPostsResponse = await self.posts.ListPosts(
            request, metadata=metadata
        )
        return page

    async def last_page(self) -> str:
        """Return the page token of the last page.

        It is made with the service's key: to reach it takes 50,000 pages.
        """
        oldest = sa.text("select published_at, id from posts order by 1, 2 offset :n")
        async with self.database.reading() as connection:
            row = (await connection.execute(oldest, {"n": SIZE})).first()
        assert row
        secret = (self.service.folder / "state" / "secret_key").read_text().strip()
        tokens = PageTokens(SecretKey(secret).mac("page-tokens"))
        context = ["posts", f"user:{self.service.user}", PostFilter(), NEWEST]
        position = Position(row.published_at.isoformat(), row.id)
        return tokens.make(position, orjson.dumps(context, default=str))


async def rows() -> list[ResultRow]:
    """Return each list of MANY posts against the first page of FEW."""
    with running() as few, running() as many:
        async with (
            grpc.aio.insecure_channel(few.grpc) as near,
            grpc.aio.insecure_channel(many.grpc) as far,
        ):
            small = await _filled(few, PostServiceStub(near), FEW)
            large = await _filled(many, PostServiceStub(far), MANY)
            rows = [row for case in CASES for row in await case(small, large)]
            await small.database.close()
            await large.database.close()
    return rows


async def _filled(service: Service, posts: Any, count: int) -> Dataset:
    database = Database(service.database)
    authors = count // POSTS_OF_AN_AUTHOR
    values = {"authors": authors, "categories": CATEGORIES, "posts": count}
    async with database.alone(transaction=True) as connection:
        for statement in FILL:
            used = {k: v for k, v in values.items() if f":{k}" in statement}
            await connection.execute(sa.text(statement), used)
    async with database.alone() as connection:
        await connection.execute(sa.text("vacuum analyze"))
        query = sa.text("select user_id, category_id from posts order by id limit 1")
        row = (await connection.execute(query)).one()
    return Dataset(service, database, posts, row.user_id, row.category_id)


async def _by_author(small: Dataset, large: Dataset) -> list[ResultRow]:
    request = pb.ListPostsRequest(page_size=SIZE, author_id=large.author)
    post_filter = PostFilter(author_id=large.author)
    return await _row("by author", small, large, request, post_filter)


async def _by_category(small: Dataset, large: Dataset) -> list[ResultRow]:
    request = pb.ListPostsRequest(page_size=SIZE, category_id=large.category)
    post_filter = PostFilter(category_id=large.category)
    return await _row("by category", small, large, request, post_filter)


async def _last_page(small: Dataset, large: Dataset) -> list[ResultRow]:
    token = await large.last_page()
    request = pb.ListPostsRequest(page_size=SIZE, page_token=token)
    page = await large.list(request)
    assert len(page.items) == SIZE
    assert not page.has_next
    return await _row("last page", small, large, request, PostFilter())


CASES: tuple[Callable[..., Any], ...] = (_by_author, _by_category, _last_page)


async def _row(
    name: str,
    small: Dataset,
    large: Dataset,
    request: pb.ListPostsRequest,
    post_filter: PostFilter,
) -> list[ResultRow]:
    """Time both alternately and count statements; return medians of the rounds."""
    first = pb.ListPostsRequest(page_size=SIZE)
    for _ in range(2):  # plans and pages are cached afterwards
        await _timed(small, first)
        await _timed(large, request)
    pairs = [
        (await _timed(small, first), await _timed(large, request))
        for _ in range(ROUNDS)
    ]
    before = statistics.median(b for b, _ in pairs)
    after = statistics.median(o for _, o in pairs)
    counts = [await _statements(large, post_filter, size) for size in (1, 100)]
    return [
        ResultRow(
            f"ListPosts {name}, {MANY:,} posts / first of {FEW:,}",
            statistics.median(o / b for b, o in pairs),
            MAX_RATIO,
            better="lower",
            unit="by time",
            notes=f"{before:.2f} / {after:.2f} ms a call",
        ),
        ResultRow(
            f"ListPosts {name}: statements",
            max(counts),
            MAX_STATEMENTS,
            better="lower",
            notes=f"{counts[0]} for 1 row, {counts[1]} for 100",
        ),
    ]


async def _timed(dataset: Dataset, request: pb.ListPostsRequest) -> float:
    """Return the milliseconds of one call."""
    started = time.perf_counter()
    for _ in range(CALLS):
        page = await dataset.list(request)
    seconds = time.perf_counter() - started
    assert len(page.items) == SIZE
    return seconds / CALLS * 1000


async def _statements(dataset: Dataset, post_filter: PostFilter, size: int) -> int:
    """Return the number of statements for one page."""
    anonymous, page = Reader(0, sees_all=False), PageRequest(size)
    with counted(dataset.database) as statements:
        await PostgresPosts(dataset.database).page(post_filter, anonymous, NEWEST, page)
    return len(statements)
