"""What members want to be told, in Postgres: noted once, then mailed alone or together.

A note and the mail that tells of it are written in one transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.clock import Clock
from server.domain.outbox.entries import Entry, EventType, NewEntry
from server.domain.posts.posts import State
from server.store.connect import Database
from server.store.outbox import enqueue
from server.store.tables import follows, posts, user_settings, users
from server.store.tables import notifications as table

CHUNK = 1_000  # followers looked at in one transaction
LINES = 20  # of a letter; what is beyond is read at the academy
_actors = users.alias()
_HERE = sa.and_(users.c.is_active, users.c.deleted_at.is_(None))


class PostgresNotifications:
    """Keeps what members want to be told."""

    def __init__(self, database: Database, clock: Clock, chunk: int = CHUNK) -> None:
        self._database = database
        self._clock = clock
        self._chunk = chunk

    async def fan_out(self, entry: Entry) -> None:
        """Note a post for some followers whose settings ask for it, then go on.

        What goes on is an entry of its own, so that nothing else waits for the many
        who follow one author. Who came after the post is not told of it.
        """
        post_id, author_id = int(entry.payload["post"]), entry.user_id
        some = _followers_after(entry, self._chunk)
        wanted = (
            sa.select(
                some.c.follower_id,
                sa.literal(author_id, sa.BigInteger),
                posts.c.id,
                sa.literal(self._clock(), table.c.created_at.type),
            )
            .join_from(some, users, users.c.id == some.c.follower_id)
            .join(user_settings, user_settings.c.user_id == users.c.id)
            .join(posts, posts.c.id == post_id)
            .where(user_settings.c.followed_posts, _HERE)
            .where(posts.c.state == State.PUBLISHED)
            # in one order, so that two chunks cannot block each other
            .order_by(some.c.follower_id)
        )
        async with self._database.transaction() as connection:
            await self._note(connection, wanted, EventType.FOLLOWED_POST)
            last = (
                await connection.execute(
                    sa.select(some)
                    .order_by(some.c.created_at, some.c.follower_id)
                    .offset(self._chunk - 1)
                )
            ).first()
            if last:
                rest = {
                    "post": post_id,
                    "since": last.created_at.isoformat(),
                    "after": last.follower_id,
                    "until": _until(entry).isoformat(),
                }
                more = NewEntry(EventType.POST_FAN_OUT, author_id, payload=rest)
                await enqueue(connection, self._clock(), more)

    async def follower(self, entry: Entry) -> None:
        """Note a follower for the member, if their settings ask for it."""
        follower_id = int(entry.payload["follower"])
        wanted = (
            sa.select(
                follows.c.followed_id,
                follows.c.follower_id,
                sa.null(),
                sa.literal(self._clock(), table.c.created_at.type),
            )
            .join_from(follows, users, users.c.id == follows.c.followed_id)
            .join(user_settings, user_settings.c.user_id == users.c.id)
            .where(follows.c.follower_id == follower_id)
            .where(follows.c.followed_id == entry.user_id)
            .where(user_settings.c.new_followers, _HERE)
        )
        async with self._database.transaction() as connection:
            await self._note(connection, wanted, EventType.NEW_FOLLOWER)

    async def _note(
        self, connection: AsyncConnection, wanted: sa.Select[Any], kind: EventType
    ) -> None:
        """Write notes that are not there yet, and a mail for each but in digests."""
        now = self._clock()
        columns = ["user_id", "actor_id", "post_id", "created_at"]
        noted = (
            insert(table)
            .from_select(columns, wanted)
            .on_conflict_do_nothing()
            .returning(table.c.id, table.c.user_id)
        )
        rows = (await connection.execute(noted)).all()
        digested = await _digested(connection, [row.user_id for row in rows])
        alone = [row for row in rows if row.user_id not in digested]
        await _told(connection, [row.id for row in alone], now)
        mails = [
            NewEntry(kind, row.user_id, payload={"first": row.id, "last": row.id})
            for row in alone
        ]
        await enqueue(connection, now, *mails)

    async def digest(self, before: datetime, now: datetime) -> bool:
        """Mail one member all their news, if the oldest is from before then.

        Gives whether there was one.
        """
        # the settings' row, which no two processes hold, stands for all of the news
        oldest = (
            sa.select(table.c.user_id)
            .join(user_settings, user_settings.c.user_id == table.c.user_id)
            .where(table.c.told_at.is_(None), table.c.created_at < before)
            .order_by(table.c.created_at)
            .limit(1)
            .with_for_update(of=user_settings, skip_locked=True)
        )
        async with self._database.transaction() as connection:
            user_id = (await connection.execute(oldest)).scalar()
            if user_id is None:
                return False
            untold = [table.c.user_id == user_id, table.c.told_at.is_(None)]
            told = sa.update(table).where(*untold).values(told_at=now)
            ids = (await connection.execute(told.returning(table.c.id))).scalars().all()
            if ids:  # else another process was quicker
                bounds = {"first": min(ids), "last": max(ids)}
                mail = NewEntry(EventType.DIGEST, user_id, payload=bounds)
                await enqueue(connection, now, mail)
        return True

    async def lines(self, user_id: int, first: int, last: int) -> Sequence[str]:
        """Give the news of a member from one to another, as they stand now.

        What is gone, or no longer asked for, is no news.
        """
        asked = sa.case(
            (table.c.post_id.is_(None), user_settings.c.new_followers),
            else_=user_settings.c.followed_posts,
        )
        there = sa.or_(table.c.post_id.is_(None), posts.c.state == State.PUBLISHED)
        query = (
            sa.select(_actors.c.username, posts.c.title)
            .join_from(table, _actors, _actors.c.id == table.c.actor_id)
            .join(user_settings, user_settings.c.user_id == table.c.user_id)
            .outerjoin(posts, posts.c.id == table.c.post_id)
            .where(table.c.user_id == user_id, table.c.id.between(first, last))
            .where(asked, there, _actors.c.deleted_at.is_(None), sa.exists(_still))
            .order_by(table.c.id)
            .limit(LINES + 1)
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        lines = [
            f"{row.username}: {row.title}"
            if row.title
            else f"{row.username} follows you"
            for row in rows[:LINES]
        ]
        return [*lines, "... and more"] if len(rows) > LINES else lines


# whom a line is about still follows, or is followed
_still = sa.select(follows.c.follower_id).where(
    sa.case(
        (
            table.c.post_id.is_(None),
            sa.and_(
                follows.c.follower_id == table.c.actor_id,
                follows.c.followed_id == table.c.user_id,
            ),
        ),
        else_=sa.and_(
            follows.c.follower_id == table.c.user_id,
            follows.c.followed_id == table.c.actor_id,
        ),
    )
)


def _until(entry: Entry) -> datetime:
    """Give when the post was published, however many entries ago."""
    text = entry.payload.get("until")
    return datetime.fromisoformat(str(text)) if text else entry.created_at


def _followers_after(entry: Entry, most: int) -> sa.Subquery:
    """Give the next followers of an author, in the order of following."""
    some = sa.select(follows.c.follower_id, follows.c.created_at).where(
        follows.c.followed_id == entry.user_id, follows.c.created_at <= _until(entry)
    )
    if "after" in entry.payload:
        since = datetime.fromisoformat(str(entry.payload["since"]))
        there = sa.tuple_(
            sa.literal(since, follows.c.created_at.type),
            sa.literal(int(entry.payload["after"]), sa.BigInteger),
        )
        here = sa.tuple_(follows.c.created_at, follows.c.follower_id)
        some = some.where(here > there)
    some = some.order_by(follows.c.created_at, follows.c.follower_id).limit(most)
    return some.subquery("some")


async def _digested(connection: AsyncConnection, ids: Sequence[int]) -> set[int]:
    """Give who of these wants the news together."""
    query = sa.select(user_settings.c.user_id).where(
        user_settings.c.user_id.in_(ids), user_settings.c.digest
    )
    return set((await connection.execute(query)).scalars())


async def _told(connection: AsyncConnection, ids: Sequence[int], now: datetime) -> None:
    statement = sa.update(table).where(table.c.id.in_(ids)).values(told_at=now)
    await connection.execute(statement)
