"""The previous content of a database while a backup is restored.

The schema is renamed, and an empty one takes its place. Renaming is one transaction,
so that the previous content can be put back. As long as the renamed schema exists, the
restore is unfinished: no process serves from this database. A restore by other tools
has no previous content: a table marks it as unfinished.

Processes look for these only when they start. One that has started before they exist
is noticed by its session.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from server.store.backups.contents import disable_timeouts, quote
from server.store.backups.errors import BackupError
from server.store.connections.connect import Database

SUFFIX = "_before_restore"
MARKER = "unfinished_restore"
RefuseOtherSessions = Callable[[], Awaitable[None]]
_ADVISORY_LOCK = 7_061_003
_LOCK = sa.text("select pg_try_advisory_xact_lock(:lock)")
# A migration waits for snapshots of others. A select keeps its own until the next
# statement; this one has none.
_END_SNAPSHOT = sa.text("set local idle_in_transaction_session_timeout = 0")
_HAS_PREVIOUS = sa.text(
    "select exists (select from pg_namespace where nspname = current_schema() || :end)"
)
_IS_MARKED = sa.text(
    "select exists (select from pg_class join pg_namespace n on n.oid = relnamespace"
    " where nspname = current_schema() and relname = :marker)"
)
_MARK = sa.text(f"create table if not exists {MARKER} ()")
_REMOVE_MARK = sa.text(f"drop table if exists {MARKER}")
_EXTENSIONS = sa.text(
    "select string_agg(extname, ', ' order by extname) from pg_extension"
    " where extnamespace = cast(:schema as regnamespace)"
)
# The service may use another role than the one that restores.
_SESSIONS = sa.text(
    "select count(*) from pg_stat_activity where datname = current_database()"
    " and pid <> pg_backend_pid()"
    " and (usename = session_user or application_name = 'academy')"
    " and application_name is distinct from cast(:own as text)"
)
_FORGET_SESSIONS = sa.text("select pg_stat_clear_snapshot()")  # of this transaction
_OWN_PROGRAM = "pg_restore"  # goes on for a moment after it was killed
# A session that was closed just now is listed a little longer.
_SESSION_CHECKS = 20
_SESSION_CHECK_SECONDS = 0.1


class RestoreUnfinished(Exception):
    """A restore of this database was interrupted, or is still running."""

    def __init__(self) -> None:
        super().__init__(
            "a restore of this database is running or was interrupted: run academy "
            "restore or complete-restore again, see docs/operations.md"
        )


async def has_previous(connection: AsyncConnection) -> bool:
    """Return whether the database has a previous content, which was set aside."""
    result = await connection.execute(_HAS_PREVIOUS, {"end": SUFFIX})
    return bool(result.scalar_one())


async def refuse_unfinished_restore(
    connection: AsyncConnection, *, marked: bool = False
) -> None:
    """Raise RestoreUnfinished if a restore of this database is unfinished.

    `marked` permits a restore by other tools that is not completed yet.
    """
    if await has_previous(connection):
        raise RestoreUnfinished
    if not marked:
        result = await connection.execute(_IS_MARKED, {"marker": MARKER})
        if result.scalar_one():
            raise RestoreUnfinished


@asynccontextmanager
async def exclusive(database: Database) -> AsyncIterator[RefuseOtherSessions]:
    """Let no other restore of the database begin during the block.

    Yield a function that raises BackupError if the service uses the database. It
    closes the idle connections of `database`.

    Raises BackupError if the service or another restore uses the database.
    """
    async with database.session() as connection:
        await disable_timeouts(connection)
        if not (await connection.execute(_LOCK, {"lock": _ADVISORY_LOCK})).scalar_one():
            raise BackupError("another restore of this database is running")

        async def refuse_other_sessions(own: str | None = _OWN_PROGRAM) -> None:
            await database.engine.dispose()
            await _refuse_other_sessions(connection, own)
            await connection.execute(_END_SNAPSHOT)

        await refuse_other_sessions(own=None)
        yield refuse_other_sessions


async def _refuse_other_sessions(connection: AsyncConnection, own: str | None) -> None:
    for _ in range(_SESSION_CHECKS):
        await connection.execute(_FORGET_SESSIONS)
        count = (await connection.execute(_SESSIONS, {"own": own})).scalar_one()
        if count == 0:
            return
        await asyncio.sleep(_SESSION_CHECK_SECONDS)
    raise BackupError(
        f"{count} other sessions use the database: stop every process of the service, "
        "and run the command again"
    )


@asynccontextmanager
async def marked_unfinished(
    database: Database, refuse_other_sessions: RefuseOtherSessions
) -> AsyncIterator[None]:
    """Let no process serve from the database before the block has succeeded.

    After an error, the database remains marked. Raises BackupError.
    """
    async with database.alone() as connection:
        await connection.execute(_MARK)
    await refuse_other_sessions()
    yield
    await refuse_other_sessions()
    async with database.alone() as connection:
        await connection.execute(_REMOVE_MARK)


@asynccontextmanager
async def replaced(
    database: Database, schema: str, refuse_other_sessions: RefuseOtherSessions
) -> AsyncIterator[None]:
    """Replace the content of a schema by what the block restores, if it succeeds.

    After an error, the schema has its previous content; unless other sessions use the
    database: they may have been told that a change was made. Raises BackupError.
    """
    await set_aside(database, schema)
    try:
        await refuse_other_sessions()
    except BaseException:
        await put_back(database, schema)  # nothing can have been written since
        raise
    try:
        yield
        await refuse_other_sessions()
    except BaseException:
        await refuse_other_sessions()
        await put_back(database, schema)
        raise
    await drop_previous(database, schema)


async def set_aside(database: Database, schema: str) -> None:
    """Rename the schema and create an empty one, unless that was done before.

    What an interrupted restore has written is dropped. Raises BackupError.
    """
    async with database.alone(transaction=True) as connection:
        name = quote(connection, schema)
        await _refuse_extensions(connection, name)
        if await has_previous(connection):
            await connection.execute(sa.text(f"drop schema {name} cascade"))
        else:
            await _rename(connection, schema, schema + SUFFIX)
        await connection.execute(sa.text(f"create schema {name}"))
        if schema == "public":  # as in a new database
            await connection.execute(sa.text("grant usage on schema public to public"))


async def _refuse_extensions(connection: AsyncConnection, name: str) -> None:
    found = await connection.execute(_EXTENSIONS, {"schema": name})
    if names := found.scalar_one():
        raise BackupError(
            f"the schema {name} contains extensions, which a restore would drop: "
            f"ALTER EXTENSION ... SET SCHEMA for {names}"
        )


async def _rename(connection: AsyncConnection, schema: str, new: str) -> None:
    old_name, new_name = quote(connection, schema), quote(connection, new)
    await connection.execute(sa.text(f"alter schema {old_name} rename to {new_name}"))


async def put_back(database: Database, schema: str) -> None:
    """Drop what was restored; the previous content takes its place again."""
    async with database.alone(transaction=True) as connection:
        name = quote(connection, schema)
        await connection.execute(sa.text(f"drop schema {name} cascade"))
        await _rename(connection, schema + SUFFIX, schema)


async def drop_previous(database: Database, schema: str) -> None:
    """Drop the previous content: the restore is finished."""
    async with database.alone(transaction=True) as connection:
        await connection.execute(_REMOVE_MARK)  # the backup may have had it
        name = quote(connection, schema + SUFFIX)
        await connection.execute(sa.text(f"drop schema {name} cascade"))
