"""What must be changed in a restored database before the service uses it.

Its past is that of the backup; callers, caches and files outside remember a later
time, which this database has lost. See docs/decisions/restore.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from redis.exceptions import RedisError
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.credentials.secret_key import SecretKey
from server.domain.outbox.entries import MAIL, EntryState
from server.store.accounts.erasure import Erasures
from server.store.accounts.erasure_log import DamagedErasureLog
from server.store.accounts.redis_users import clear_cached_users
from server.store.backups.checks import check_content
from server.store.backups.errors import BackupError
from server.store.backups.restored_at import record_restoration
from server.store.connections.connect import Database
from server.store.redis.redis_client import RedisClient
from server.store.tables import (
    mailed_tokens,
    metadata,
    outbox,
    revocations,
    sessions,
    signing_keys,
    users,
)

# More rows than any table can have gained in the time that is lost: an id that was
# used in it must not be used again, because tokens, logs and links contain it.
SKIPPED_IDS = 1_000_000_000
ADDRESS_BUDGET = timedelta(seconds=10)  # of each erasure; the service does the rest
CLOCK_TOLERANCE = timedelta(hours=1)
_SKIP_IDS = sa.text(
    "select setval(sequence, greatest(coalesce(pg_sequence_last_value(sequence), 0),"
    " :newest) + :skipped)"
    " from cast(pg_get_serial_sequence(:table, 'id') as regclass) as sequence"
)
_PENDING_MAILS = sa.and_(
    outbox.c.state == EntryState.PENDING, outbox.c.kind.startswith(MAIL)
)


@dataclass(frozen=True, slots=True)
class CompletionOptions:
    """What the operator decides; `erasures` has the erased users with the time."""

    erasures: Mapping[int, datetime]
    end_sessions: bool = False
    discard_mails: bool = False


@dataclass(frozen=True, slots=True)
class CompletionReport:
    """What was done: users erased again, sessions ended, e-mails that will be sent."""

    erased: int
    ended_sessions: int
    pending_mails: int


@dataclass(frozen=True, slots=True)
class RestoredStores:
    """What a restored database is completed with."""

    database: Database
    redis: RedisClient
    erasures: Erasures
    secret: SecretKey
    clock: Callable[[], datetime]


async def complete_restore(
    stores: RestoredStores, options: CompletionOptions
) -> CompletionReport:
    """Make a restored database fit for use; running it again does no harm.

    Raises BackupError, DamagedErasureLog if the log is that of another database, and
    StoreUnavailable.
    """
    now = stores.clock()
    async with stores.database.alone(transaction=True) as connection:
        await check_content(connection, stores.secret)
        ids = await _to_erase(connection, options.erasures)
        await _skip_ids(connection, max(options.erasures, default=0))
        await _invalidate_mailed_tokens(connection, now)
        mails = await _pending_mails(connection, discard=options.discard_mails)
        ended = await _end_sessions(connection, now) if options.end_sessions else 0
        await record_restoration(connection, now)
    for user_id in ids:
        await stores.erasures.erase_again(user_id, now, ADDRESS_BUDGET)
    await clear_caches(stores.redis)
    async with stores.database.alone() as connection:
        for table in metadata.sorted_tables:
            await connection.execute(sa.text(f"analyze {table.name}"))
    return CompletionReport(len(ids), ended, mails)


async def clear_caches(redis: RedisClient) -> None:
    """Remove cached users of the lost time. Raises BackupError."""
    try:
        await clear_cached_users(redis)
    except (RedisError, OSError) as error:
        raise BackupError(
            "the cached users in Redis cannot be removed "
            f"({type(error).__name__}): start Redis, or correct REDIS_URL"
        ) from error


async def _to_erase(
    connection: AsyncConnection, erasures: Mapping[int, datetime]
) -> list[int]:
    """Return the ids of erased users that exist.

    Raises DamagedErasureLog if a user is younger than the erasure.
    """
    query = sa.select(users.c.id, users.c.created_at).where(
        users.c.id == sa.func.any(sa.cast(sorted(erasures), sa.ARRAY(sa.BigInteger)))
    )
    rows = (await connection.execute(query.order_by(users.c.id))).all()
    for row in rows:
        if row.created_at > erasures[row.id] + CLOCK_TOLERANCE:
            raise DamagedErasureLog(
                f"the erasure log has user {row.id} before the account was created: it "
                "is the log of another database"
            )
    return [row.id for row in rows]


async def _skip_ids(connection: AsyncConnection, newest: int) -> None:
    """Skip ids in every table; `newest` is the greatest id in the erasure log."""
    for table in metadata.sorted_tables:
        if "id" in table.c and table.c.id.identity:
            values = {"table": table.name, "skipped": SKIPPED_IDS}
            known = newest if table is users else 0
            await connection.execute(_SKIP_IDS, {**values, "newest": known})


async def _invalidate_mailed_tokens(connection: AsyncConnection, now: datetime) -> None:
    """Invalidate the tokens in e-mails: they may have been used in the lost time."""
    await connection.execute(
        sa.update(mailed_tokens)
        .where(mailed_tokens.c.used_at.is_(None))
        .values(used_at=now, expires_at=sa.func.least(mailed_tokens.c.expires_at, now))
    )


async def _pending_mails(connection: AsyncConnection, *, discard: bool) -> int:
    """Return the number of e-mails that will be sent, perhaps for the second time."""
    if discard:
        await connection.execute(sa.delete(outbox).where(_PENDING_MAILS))
        return 0
    query = sa.select(sa.func.count()).select_from(outbox).where(_PENDING_MAILS)
    return int((await connection.execute(query)).scalar_one())


async def _end_sessions(connection: AsyncConnection, now: datetime) -> int:
    """End every session, also those of the lost time, by new signing keys."""
    ended = (
        sa.update(sessions)
        .where(sessions.c.ended_at.is_(None))
        .values(ended_at=now)
        .returning(sessions.c.id)
        .cte("ended")
    )
    rows = sa.select(ended.c.id, sa.literal(now, sessions.c.created_at.type))
    revoke = sa.insert(revocations).from_select(["session_id", "ended_at"], rows)
    count = (await connection.execute(revoke)).rowcount
    await connection.execute(sa.delete(signing_keys))  # the service creates others
    return count
