"""`academy bench-seed`: fills a database with made-up members for load tests."""

from __future__ import annotations

import secrets
import time
from typing import Annotated

import typer

from server.cli import state_dir
from server.cli.database import open_database
from server.cli.terminal import failure, load_settings, report_errors, run_async
from server.domain.clock import system_clock
from server.domain.credentials.passwords import PasswordHasher
from server.store import migrate
from server.store.connections.connect import Database
from server.store.seeding.members import MemberRows, SeedSizes
from server.store.seeding.seed import has_users, seed, sizes
from server.workers.hashing import HashingPool

MIB = 1024 * 1024


def bench_seed(
    users: Annotated[int, typer.Option(min=1, help="Number of members.")] = 1_000_000,
    sessions: Annotated[int, typer.Option(min=0, help="Sessions per member.")] = 10,
    posts: Annotated[int, typer.Option(min=0, help="Posts per member.")] = 1,
    follows: Annotated[int, typer.Option(min=0, help="Follows per member.")] = 10,
    add: Annotated[
        bool, typer.Option("--add", help="Add to a database that has users already.")
    ] = False,
) -> None:
    """Fill the database with made-up members, for load tests only.

    All of them have the same password, which is printed. Nothing is deleted.
    An interrupted run leaves its members so far, complete with sessions,
    posts and follows, but without counts in user_analytics.
    """
    settings = state_dir.with_saved_values(load_settings())
    with report_errors():
        database = open_database(settings)
    seed_sizes = SeedSizes(users, sessions, posts, follows)
    run_async(_run(database, seed_sizes, add=add), settings)


async def _run(database: Database, seed_sizes: SeedSizes, *, add: bool) -> None:
    try:
        if await migrate.is_behind(database):
            raise failure("the database schema is out of date: run academy migrate")
        if not add and await has_users(database):
            raise failure("the database has users; --add adds members to them")
        await _seed(database, seed_sizes)
    finally:
        await database.close()


async def _seed(database: Database, seed_sizes: SeedSizes) -> None:
    password = f"Aa1-{secrets.token_urlsafe(12)}"
    typer.echo(f"password of every member: {password}")
    now, started = system_clock(), time.monotonic()
    rows = MemberRows(seed_sizes, await _hashed(password), now)
    label = f"{seed_sizes.users:,} members"
    with typer.progressbar(length=seed_sizes.users, label=label) as progress:
        await seed(database, rows, seed_sizes.users, now, progress.update)
    seconds = time.monotonic() - started
    for table, count, size in await sizes(database):
        typer.echo(f"{table:<16} {count:>12,} rows {size / MIB:>10,.1f} MiB")
    typer.echo(f"{seconds:,.0f} s, {seed_sizes.users / seconds:,.0f} members a second")


async def _hashed(password: str) -> str:
    pool = HashingPool()
    try:
        return await PasswordHasher(pool).hash(password)
    finally:
        pool.close()
