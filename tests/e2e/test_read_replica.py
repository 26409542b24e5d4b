"""`DATABASE_READ_URL`: a real streaming replica, whose lag the tests decide."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import pytest
import pytest_asyncio
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from blatam.post.v1 import post_pb2
from blatam.user.v1 import score_pb2, user_pb2
from server.cli.monitoring.findings import Finding
from server.cli.monitoring.replica_check import check_replica
from server.config import load
from server.domain.accounts.users import Role
from server.domain.callers import ANONYMOUS, Caller, current_caller
from server.store.accounts.user_reads import UserReads
from server.store.connections.connect import Database
from server.store.pool.statement import Statement
from server.store.redis.redis_client import RedisClient, redis_client
from server.store.replica.replicated_database import ReplicatedDatabase
from server.store.replica.write_marks import WriteMarks
from tests.conftest import Servers, fresh_database, key_space, ready
from tests.pgbouncer import BINARY, pgbouncer
from tests.replica import StreamingReplica, execute, streaming_replica
from tests.running import RunningService, SignedInUser, running

ANA, BEN = Caller(1), Caller(2)
WHERE = Statement("select pg_is_in_recovery() as on_replica")
COUNT = Statement("select count(*) as rows from notes")
WRITE = Statement("insert into notes default values")
MAX_LAG = timedelta(seconds=1)
SECONDS = 20
LAG = b"academy_database_replica_lag_seconds "
EXPORT_POSTS = "/blatam.post.v1.PostService/ExportPosts"
HAS_SERVED_EXPORT = """
    select exists (
        select from pg_stat_activity
        where query ilike any (array['%posts%', '%categories%'])
        and pid <> pg_backend_pid()
    )
"""
CLOSED = "redis://127.0.0.1:1"


@dataclass(frozen=True, slots=True)
class Pair:
    """A primary's database with its replica."""

    url: str
    replica: StreamingReplica


@pytest_asyncio.fixture(scope="module")
async def pair(
    servers: Servers, admin: AsyncEngine, template: str
) -> AsyncIterator[Pair]:
    async with fresh_database(servers, admin, template) as url:
        await execute(
            url, "create table notes (id bigint generated always as identity)"
        )
        async with streaming_replica(url) as replica:
            yield Pair(url, replica)


@pytest_asyncio.fixture
async def replaying(pair: Pair) -> AsyncIterator[Pair]:
    """Return the pair with a replica that has everything; afterwards it replays."""
    await pair.replica.replay(pair.url)
    yield pair
    await pair.replica.resume()


@asynccontextmanager
async def opened(
    pair: Pair, redis_url: str, max_lag: timedelta = MAX_LAG, **options: Any
) -> AsyncIterator[ReplicatedDatabase]:
    """Open the pair as a process does, without the task that compares the servers."""
    redis: RedisClient = redis_client(redis_url)
    database = ReplicatedDatabase(
        options.pop("url", pair.url),
        options.pop("replica_url", pair.replica.url),
        WriteMarks(redis, max_lag),
        max_lag,
        **options,
    )
    try:
        yield database
    finally:
        await database.close()
        await redis.aclose()


@contextmanager
def calling(caller: Caller) -> Iterator[None]:
    token = current_caller.set(caller)
    try:
        yield
    finally:
        current_caller.reset(token)


async def reads_replica(
    database: ReplicatedDatabase, caller: Caller = ANA, *, stale: bool = True
) -> bool:
    """Return whether the replica serves a read of this caller."""
    with calling(caller):
        (row,) = await database.reads(stale=stale).run(WHERE)
    on_replica: bool = row["on_replica"]
    return on_replica


async def until_usable(database: ReplicatedDatabase) -> None:
    async with asyncio.timeout(SECONDS):
        await database.replica.refresh()
        while not database.replica.is_usable:
            await asyncio.sleep(0.02)
            await database.replica.refresh()


async def until_not_usable(database: ReplicatedDatabase) -> None:
    async with asyncio.timeout(SECONDS):
        while database.replica.is_usable:  # noqa: ASYNC110 - time has to pass
            await asyncio.sleep(0.02)


async def test_replica_serves_only_stale_reads_of_callers(
    replaying: Pair, redis_url: str
) -> None:
    async with opened(replaying, redis_url) as database:
        assert not await reads_replica(database)  # not compared yet
        await until_usable(database)
        assert await reads_replica(database)
        assert not await reads_replica(database, stale=False)
        assert not await reads_replica(database, ANONYMOUS)


@pytest.mark.parametrize("kind", ["statement", "transaction"])
async def test_caller_reads_its_own_writes_in_every_process(
    replaying: Pair, redis_url: str, kind: str
) -> None:
    """The replica replays nothing: only the primary has the write."""
    async with (
        opened(replaying, redis_url, timedelta(hours=1)) as writing,
        opened(replaying, redis_url, timedelta(hours=1)) as other,
    ):
        for database in (writing, other):
            await until_usable(database)
        await replaying.replica.pause()
        (before,) = await other.reads(stale=True).run(COUNT)
        with calling(ANA):
            if kind == "statement":
                await writing.run(WRITE)
            else:
                async with writing.transaction() as connection:
                    await connection.execute(WRITE.clause)
        for database in (writing, other):
            assert not await reads_replica(database, ANA)
            assert await reads_replica(database, BEN)
            with calling(ANA):
                (row,) = await database.reads(stale=True).run(COUNT)
            assert row["rows"] == before["rows"] + 1


async def test_caller_reads_the_replica_again_when_it_must_have_the_write(
    replaying: Pair, redis_url: str
) -> None:
    async with opened(replaying, redis_url, timedelta(seconds=0.2)) as database:
        with calling(ANA):
            await database.run(WRITE)
        async with asyncio.timeout(SECONDS):
            await until_usable(database)
            while not await reads_replica(database):
                await until_usable(database)
                await asyncio.sleep(0.02)
        with calling(ANA):
            (stale,) = await database.reads(stale=True).run(COUNT)
        (row,) = await database.run(COUNT)
        assert stale["rows"] == row["rows"]


async def test_write_that_fails_marks_its_caller(
    replaying: Pair, redis_url: str
) -> None:
    """It may have been committed, although its answer was lost."""
    async with opened(replaying, redis_url) as database:
        await until_usable(database)
        with calling(ANA), pytest.raises(RuntimeError):
            async with database.transaction():
                raise RuntimeError
        assert not await reads_replica(database)


async def test_replica_that_lags_too_much_is_not_read(
    replaying: Pair, redis_url: str
) -> None:
    async with opened(replaying, redis_url, timedelta(seconds=0.3)) as database:
        await until_usable(database)
        await replaying.replica.pause()
        await database.run(WRITE)
        await database.replica.refresh()
        await until_not_usable(database)
        assert database.replica.is_degraded
        assert not await reads_replica(database)
        await replaying.replica.resume()
        await until_usable(database)
        assert await reads_replica(database)


async def test_without_redis_the_primary_is_read(replaying: Pair) -> None:
    """Nobody can know who has written in another process."""
    async with opened(replaying, CLOSED) as database:
        await until_usable(database)
        assert not await reads_replica(database)
        with calling(ANA):
            await database.run(WRITE)


async def test_read_in_the_way_of_replay_is_repeated_at_the_primary(
    replaying: Pair, redis_url: str
) -> None:
    """Postgres cancels it: "canceling statement due to conflict with recovery"."""
    begun = asyncio.Event()
    servers = []

    async def work(connection: AsyncConnection) -> bool:
        recovery = sa.text("select pg_is_in_recovery() from notes limit 1")
        on_replica: bool = (await connection.execute(recovery)).scalar_one()
        servers.append(on_replica)
        begun.set()
        if on_replica:
            await connection.execute(sa.text("select pg_sleep(30), id from notes"))
        return on_replica

    await execute(replaying.url, "insert into notes default values")
    await replaying.replica.replay(replaying.url)
    async with opened(replaying, redis_url) as database:
        await until_usable(database)
        with calling(ANA):
            reading = asyncio.create_task(database.reads(stale=True).read(work))
        await begun.wait()
        await execute(replaying.url, "alter table notes add column if not exists x int")
        async with asyncio.timeout(SECONDS):
            assert await reading is False
    assert servers == [True, False]


async def test_row_that_the_replica_does_not_have_is_looked_up_at_the_primary(
    replaying: Pair, redis_url: str
) -> None:
    async def work(connection: AsyncConnection) -> bool:
        recovery = sa.text("select pg_is_in_recovery()")
        return not (await connection.execute(recovery)).scalar_one()

    async with opened(replaying, redis_url) as database:
        await until_usable(database)
        with calling(ANA):
            reads = database.reads(stale=True)
            assert await reads.read(work, is_found=bool)
            assert not await reads.read(work)


@pytest.mark.skipif(
    BINARY is None, reason="pgbouncer is not installed (apt-get install pgbouncer)"
)
async def test_replica_is_read_behind_transaction_poolers(
    replaying: Pair, redis_url: str
) -> None:
    with (
        pgbouncer(replaying.url) as primary,
        pgbouncer(replaying.replica.url) as replica,
    ):
        urls: dict[str, Any] = {"url": primary, "replica_url": replica}
        async with opened(
            replaying, redis_url, transaction_pooler=True, **urls
        ) as database:
            await until_usable(database)
            assert await reads_replica(database)
            with calling(ANA):
                await database.run(WRITE)
            assert not await reads_replica(database)


async def test_primary_may_be_its_own_replica(replaying: Pair, redis_url: str) -> None:
    async with opened(replaying, redis_url, replica_url=replaying.url) as database:
        await database.replica.refresh()
        assert database.replica.is_usable


@dataclass(frozen=True, slots=True)
class Processes:
    """Two processes that have read the replica, and the Redis that they share."""

    here: RunningService
    there: RunningService
    redis_url: str

    async def forget_writes(self) -> None:
        """Delete the marks of all callers; `here` still has those of its own."""
        redis = redis_client(self.redis_url)
        keys = [key async for key in redis.scan_iter("wrote:*")]
        await redis.delete("wrote:nobody", *keys)
        await redis.aclose()


@pytest_asyncio.fixture(scope="module")
async def processes(pair: Pair, servers: Servers) -> AsyncIterator[Processes]:
    redis_url = key_space(servers, 7)
    settings: dict[str, Any] = {
        "database_read_url": pair.replica.url,
        "database_read_max_lag": "1h",
    }
    async with (
        running(pair.url, redis_url, **settings) as here,
        running(pair.url, redis_url, **settings) as there,
    ):
        await ready(here)
        await ready(there)
        async with asyncio.timeout(SECONDS):
            while LAG not in await there.render_metrics():  # noqa: ASYNC110 - a poll
                await asyncio.sleep(0.02)
        yield Processes(here, there, redis_url)


async def ids_of(service: RunningService, user: SignedInUser) -> list[int]:
    """Return the ids of all posts, read in pages of one by token."""
    ids, token = [], ""
    while True:
        request = post_pb2.ListPostsRequest(page_size=1, page_token=token, sort_by="id")
        page = await service.posts.ListPosts(request, metadata=user.metadata)
        ids += [post.id for post in page.items]
        token = page.next_page_token
        if not token:
            return ids


async def publish(service: RunningService, author: SignedInUser) -> int:
    request = post_pb2.CreatePostRequest(
        title="t", body="b", state=post_pb2.POST_STATE_PUBLISHED
    )
    created = await service.posts.CreatePost(request, metadata=author.metadata)
    return created.post.id


async def test_members_see_their_own_writes_at_another_process(
    replaying: Pair, processes: Processes
) -> None:
    """Lists, overviews, scores and exports; other members see them a moment later."""
    here, there = processes.here, processes.there
    ben = await here.signed_in()
    await publish(here, ben)
    await publish(here, ben)
    reader = await here.signed_in()
    await processes.forget_writes()
    await replaying.replica.replay(replaying.url)
    await replaying.replica.pause()
    ana = await here.signed_in()  # the replica does not have this account
    new = await publish(here, ana)
    assert new in await ids_of(there, ana)
    assert new not in await ids_of(there, reader)
    request = user_pb2.GetUserOverviewRequest(id=ana.user.id)
    own = await there.users.GetUserOverview(request, metadata=ana.metadata)
    other = await there.users.GetUserOverview(request, metadata=reader.metadata)
    assert [len(o.posts) for o in (own, other)] == [1, 0]
    score = score_pb2.GetUserScoreRequest(id=ana.user.id)
    for caller in (ana, reader):  # an account that is not found is looked up
        await there.users.GetUserScore(score, metadata=caller.metadata)
    path = f"/api/v1/users/{ana.user.id}:export"
    export = (await there.http.get(path, headers=ana.headers)).json()
    assert [post["id"] for post in export["posts"]] == [str(new)]


async def test_copy_of_the_accounts_misses_no_change(
    replaying: Pair, redis_url: str
) -> None:
    """The contract: keep a token, export all accounts, then watch from the token.

    The export must have every change that was committed before the token.
    """
    async with opened(replaying, redis_url, timedelta(seconds=SECONDS)) as database:
        await until_usable(database)
        await replaying.replica.pause()
        user_id = await execute(
            replaying.url,
            "insert into users (email, username, username_folded, hashed_password, "
            "role, created_at, updated_at) values "
            "('late@x.example', 'late', 'late', 'x', 1, now(), now()) returning id",
        )
        with calling(Caller(2, is_admin=True)):  # who has written nothing
            accounts = await UserReads(database).after(0, 10_000)
        assert user_id in [user.id for user in accounts]


async def test_export_goes_on_when_the_replica_ends(
    replaying: Pair, processes: Processes
) -> None:
    """Each post once, although batches come from two servers."""
    operator = await processes.here.signed_in(Role.ADMIN)
    await execute(
        replaying.url,
        "insert into posts (user_id, title, body, state, created_at, updated_at) "
        f"select {operator.user.id}, 't' || n, 'b', 2, now(), now() "
        "from generate_series(1, 1200) as n",
    )
    await processes.forget_writes()
    await replaying.replica.replay(replaying.url)
    service = processes.there
    stream = service.port.server_stream(
        EXPORT_POSTS, b"", metadata=operator.metadata, timeout=SECONDS
    )
    messages = cast(AsyncGenerator[bytes, None], stream.__aiter__())
    exported: list[int] = []
    async with aclosing(messages):
        async for message in messages:
            exported.append(exported_id(message))
            if len(exported) == 1:
                assert await replaying.replica.execute(HAS_SERVED_EXPORT)
                replaying.replica.kill()
    try:
        expected = await execute(replaying.url, "select count(*) from posts")
        assert len(exported) == len(set(exported)) == expected
        assert exported == sorted(exported)
        async with asyncio.timeout(SECONDS):
            while not await is_degraded(service):  # noqa: ASYNC110 - a poll
                await asyncio.sleep(0.02)
    finally:
        replaying.replica.restart()
        async with asyncio.timeout(SECONDS):
            while await is_degraded(service):  # noqa: ASYNC110 - a poll
                await asyncio.sleep(0.02)


async def is_degraded(service: RunningService) -> bool:
    scrape = await service.scrape()
    return scrape.total("academy_degraded", dependency="replica") == 1


def exported_id(message: bytes) -> int:
    return post_pb2.ExportPostsResponse.FromString(message).post.id


async def test_doctor_shows_the_lag(replaying: Pair) -> None:
    finding = await checked(replaying, replaying.replica.url)
    assert finding.ok
    assert re.search(r"responds, lags by 0\.\d s$", finding.result)
    await replaying.replica.pause()
    await execute(replaying.url, "insert into notes default values")
    finding = await checked(replaying, replaying.replica.url)
    assert re.search(r"lags by \d+\.\d s, \d+ bytes are missing", finding.result)


async def test_doctor_names_a_url_that_leads_to_no_replica(replaying: Pair) -> None:
    """The primary itself is allowed."""
    assert (await checked(replaying, replaying.url)).ok
    other = sa.make_url(replaying.url).set(database="postgres")
    finding = await checked(replaying, other.render_as_string(hide_password=False))
    assert not finding.ok
    assert "another database" in finding.result
    assert "set DATABASE_READ_URL to" in finding.advice
    unknown = other.set(database="unknown").render_as_string(hide_password=False)
    finding = await checked(replaying, unknown)
    assert not finding.ok
    assert "or correct DATABASE_READ_URL" in finding.advice


async def checked(pair: Pair, url: str) -> Finding:
    """Return what `academy doctor` finds about a DATABASE_READ_URL."""
    primary = Database(pair.url)
    try:
        (finding,) = await check_replica(load(database_read_url=url), primary)
    finally:
        await primary.close()
    return finding


async def test_promoted_replica_is_not_read(pair: Pair, redis_url: str) -> None:
    """It has changes of its own from now on."""
    async with (
        streaming_replica(pair.url) as replica,
        opened(Pair(pair.url, replica), redis_url, timedelta(hours=1)) as database,
    ):
        await until_usable(database)
        await replica.promote()
        await database.replica.refresh()
        assert not database.replica.is_usable
        assert not await reads_replica(database)
