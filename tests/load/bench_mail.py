"""How fast one process sends e-mails, and notifies the followers of a post (P17)."""

import asyncio
import os
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import sqlalchemy as sa

from server.embedded.servers import EmbeddedServers
from server.store.connections.connect import Database
from server.store.migrate import upgrade
from server.store.tables import outbox
from tests.load.row import ResultRow
from tests.load.smtp_sink import smtp_sink
from tests.processes import Serving, serving

MAILS = int(os.environ.get("BENCH_MAILS", "2000"))
FOLLOWERS = int(os.environ.get("BENCH_FOLLOWERS", "100000"))
SECONDS_PER_MAIL = 0.02
MAX_SECONDS = 300
SAMPLE_SECONDS = 0.2
MIB = 1024 * 1024

_PUBLISH = [
    "insert into users (email, username, username_folded, hashed_password, role,"
    " created_at, updated_at)"
    " select 'm' || n || '@d' || n % 20 || '.example', 'm' || n, 'm' || n, '', 1,"
    " now(), now() from generate_series(0, :followers) n",
    "insert into user_settings (user_id, followed_posts, new_followers, digest, theme,"
    " visibility, updated_at, version)"
    " select id, true, true, false, 1, 1, now(), 1 from users where username <> 'm0'",
    "insert into follows (follower_id, followed_id, created_at)"
    " select f.id, a.id, now() - interval '1 hour' + f.id * interval '1 microsecond'"
    " from users f, users a where a.username = 'm0' and f.id <> a.id",
    "insert into posts (user_id, title, body, state, created_at, updated_at)"
    " select id, 'On numbers', 'body', 2, now(), now() from users"
    " where username = 'm0'",
    "analyze",
    "insert into outbox (kind, user_id, payload, created_at)"
    " select 'post.published', user_id, jsonb_build_object('post', id), now()"
    " from posts",
]
# each batch writes its e-mails with the time at which it began
_BATCHES = (
    sa.select(outbox.c.created_at)
    .where(outbox.c.kind == "mail.followed_post")
    .distinct()
    .order_by(outbox.c.created_at)
)
_QUEUED = (
    sa.select(sa.func.count())
    .select_from(outbox)
    .where(outbox.c.kind == "mail.followed_post")
)


def rows() -> list[ResultRow]:
    """Return the e-mails a second, and the time and memory of a large fan-out."""
    with TemporaryDirectory(prefix="blatam-bench-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)  # Postgres runs under another account
        servers = EmbeddedServers(folder)
        try:
            database_url, redis_url = servers.start_postgres(), servers.start_valkey()
            return asyncio.run(_measured(database_url, redis_url))
        finally:
            servers.stop()


async def _measured(database_url: str, redis_url: str) -> list[ResultRow]:
    database = Database(database_url)
    await upgrade(database)
    settings = {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "SECRET_KEY": "0123456789abcdef" * 2,
    }
    rows = [await _mail_rate(database, settings), *await _fan_out(database, settings)]
    await database.close()
    return rows


async def _mail_rate(database: Database, settings: dict[str, str]) -> ResultRow:
    async with (
        smtp_sink(SECONDS_PER_MAIL) as sink,
        serving(settings | {"SMTP_URL": sink.url}) as served,
    ):
        process = psutil.Process(served.process.pid)
        await _publish(database, MAILS)
        await sink.filled(1, MAX_SECONDS)
        cpu = sum(process.cpu_times()[:2])
        await sink.filled(MAILS, MAX_SECONDS)
        cpu = sum(process.cpu_times()[:2]) - cpu
    assert len(sink.message_ids) == len(sink.accepted_at) == MAILS
    return ResultRow(
        "P17 e-mails through a server that takes 20 ms",
        sink.rate(),
        200,
        unit="a second and process",
        notes=f"{cpu / MAILS * 1e3:.2f} ms of CPU each, {sink.connections} connections",
    )


async def _fan_out(database: Database, settings: dict[str, str]) -> list[ResultRow]:
    """Notify many followers while their e-mails are sent."""
    async with (
        smtp_sink(SECONDS_PER_MAIL) as sink,
        serving(settings | {"SMTP_URL": sink.url}) as served,
        _memory_growth(served) as growth,
    ):
        await _publish(database, FOLLOWERS)
        started = time.perf_counter()
        async with asyncio.timeout(MAX_SECONDS):
            while await _scalar(database, _QUEUED) < FOLLOWERS:  # noqa: ASYNC110 - rows of SQL
                await asyncio.sleep(SAMPLE_SECONDS)
        seconds = time.perf_counter() - started
        async with database.reading() as connection:
            batches = (await connection.execute(_BATCHES)).scalars().all()
    periods = sorted(
        (after - before).total_seconds() * 1e3 for before, after in pairwise(batches)
    )
    name = f"P17 fan-out to {FOLLOWERS:,}"
    return [
        ResultRow(
            f"{name}: time until queued",
            seconds,
            30,
            better="lower",
            unit="s",
            notes=f"{len(sink.accepted_at):,} e-mails sent meanwhile",
        ),
        ResultRow(f"{name}: memory growth", growth[-1], 20, "lower", "MiB"),
        ResultRow(
            f"{name}: p99 of a batch",
            periods[int(len(periods) * 0.99)],
            100,
            better="lower",
            unit="ms",
            notes=f"from one batch to the next, of which the transaction is a part;"
            f" median {statistics.median(periods):.0f}, longest {periods[-1]:.0f}",
        ),
    ]


async def _publish(database: Database, followers: int) -> None:
    """Replace all data by a post of an author with followers who want e-mails."""
    async with database.alone(transaction=True) as connection:
        await connection.execute(
            sa.text("truncate outbox, users restart identity cascade")
        )
        for statement in _PUBLISH:
            parameters = {"followers": followers} if ":followers" in statement else {}
            await connection.execute(sa.text(statement), parameters)


async def _scalar(database: Database, query: sa.Select[int]) -> int:
    async with database.reading() as connection:
        value: int = (await connection.execute(query)).scalar_one()
    return value


@asynccontextmanager
async def _memory_growth(served: Serving) -> AsyncIterator[list[float]]:
    """Yield a list whose last item is the greatest growth so far, in MiB."""
    process = psutil.Process(served.process.pid)
    start = process.memory_info().rss
    growth = [0.0]

    async def sample() -> None:
        while True:
            grown = (process.memory_info().rss - start) / MIB
            growth.append(max(growth[-1], grown))
            await asyncio.sleep(SAMPLE_SECONDS)

    task = asyncio.create_task(sample())
    try:
        yield growth
    finally:
        task.cancel()
