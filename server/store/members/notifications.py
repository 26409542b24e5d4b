"""Notifications of members in Postgres: written once, mailed one by one or as a digest.

A notification and the outbox entry of its e-mail are written in one transaction.
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
from server.domain.posts.posts import PostState
from server.store.connections.connect import Database
from server.store.outbox import enqueue
from server.store.tables import follows, posts, user_settings, users
from server.store.tables import notifications as table

BATCH_SIZE = 1_000  # followers per transaction
MAX_LINES = 20  # per e-mail
_actors = users.alias()
_CAN_READ_MAIL = sa.and_(users.c.is_active, users.c.deleted_at.is_(None))


class PostgresNotifications:
    """Stores notifications."""

    def __init__(
        self, database: Database, clock: Clock, batch_size: int = BATCH_SIZE
    ) -> None:
        self._database = database
        self._clock = clock
        self._batch_size = batch_size

    async def fan_out(self, entry: Entry) -> None:
        """Notify one batch of followers of a post, if their settings require it.

        The next batch is an outbox entry of its own, so that other entries do not wait
        for an author with many followers. Those who followed after the publication are
        not notified.
        """
        post_id, author_id = int(entry.payload["post"]), entry.user_id
        batch = _followers_after(entry, self._batch_size)
        recipients = (
            sa.select(
                batch.c.follower_id,
                sa.literal(author_id, sa.BigInteger),
                posts.c.id,
                sa.literal(self._clock(), table.c.created_at.type),
            )
            .join_from(batch, users, users.c.id == batch.c.follower_id)
            .join(user_settings, user_settings.c.user_id == users.c.id)
            .join(posts, posts.c.id == post_id)
            .where(user_settings.c.followed_posts, _CAN_READ_MAIL)
            .where(posts.c.state == PostState.PUBLISHED)
            # in one order, so that two batches cannot deadlock
            .order_by(batch.c.follower_id)
        )
        async with self._database.transaction() as connection:
            await self._write(connection, recipients, EventType.FOLLOWED_POST)
            last = (
                await connection.execute(
                    sa.select(batch)
                    .order_by(batch.c.created_at, batch.c.follower_id)
                    .offset(self._batch_size - 1)
                )
            ).first()
            if last:
                next_batch = {
                    "post": post_id,
                    "since": last.created_at.isoformat(),
                    "after": last.follower_id,
                    "until": _until(entry).isoformat(),
                }
                event = NewEntry(EventType.POST_FAN_OUT, author_id, payload=next_batch)
                await enqueue(connection, self._clock(), event)

    async def follower(self, entry: Entry) -> None:
        """Notify a member of a follower, if their settings require it."""
        follower_id = int(entry.payload["follower"])
        recipients = (
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
            .where(user_settings.c.new_followers, _CAN_READ_MAIL)
        )
        async with self._database.transaction() as connection:
            await self._write(connection, recipients, EventType.NEW_FOLLOWER)

    async def _write(
        self, connection: AsyncConnection, recipients: sa.Select[Any], kind: EventType
    ) -> None:
        """Write the missing notifications, and an e-mail for each outside digests."""
        now = self._clock()
        columns = ["user_id", "actor_id", "post_id", "created_at"]
        insertion = (
            insert(table)
            .from_select(columns, recipients)
            .on_conflict_do_nothing()
            .returning(table.c.id, table.c.user_id)
        )
        rows = (await connection.execute(insertion)).all()
        in_digests = await _with_digest(connection, [row.user_id for row in rows])
        immediate = [row for row in rows if row.user_id not in in_digests]
        await _mark_sent(connection, [row.id for row in immediate], now)
        mails = [
            NewEntry(kind, row.user_id, payload={"first": row.id, "last": row.id})
            for row in immediate
        ]
        await enqueue(connection, now, *mails)

    async def digest(self, before: datetime, now: datetime) -> bool:
        """Mail one member all pending notifications, if the oldest is due.

        It is due if it was written before `before`. Return whether there was one.
        """
        # the lock on the settings' row stands for all notifications of the member
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
            pending = [table.c.user_id == user_id, table.c.told_at.is_(None)]
            update = sa.update(table).where(*pending).values(told_at=now)
            sent = await connection.execute(update.returning(table.c.id))
            ids = sent.scalars().all()
            if ids:  # otherwise another process was faster
                bounds = {"first": min(ids), "last": max(ids)}
                mail = NewEntry(EventType.DIGEST, user_id, payload=bounds)
                await enqueue(connection, now, mail)
        return True

    async def lines(self, user_id: int, first: int, last: int) -> Sequence[str]:
        """Return the lines of an e-mail for the notifications `first` to `last`.

        A notification has no line if its post or follow is gone, or if the member has
        turned this kind off.
        """
        enabled = sa.case(
            (table.c.post_id.is_(None), user_settings.c.new_followers),
            else_=user_settings.c.followed_posts,
        )
        still_published = sa.or_(
            table.c.post_id.is_(None), posts.c.state == PostState.PUBLISHED
        )
        query = (
            sa.select(_actors.c.username, posts.c.title)
            .join_from(table, _actors, _actors.c.id == table.c.actor_id)
            .join(user_settings, user_settings.c.user_id == table.c.user_id)
            .outerjoin(posts, posts.c.id == table.c.post_id)
            .where(table.c.user_id == user_id, table.c.id.between(first, last))
            .where(enabled, still_published, sa.exists(_still_follows))
            .where(_actors.c.deleted_at.is_(None))
            .order_by(table.c.id)
            .limit(MAX_LINES + 1)
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        lines = [
            f"{row.username}: {row.title}"
            if row.title
            else f"{row.username} follows you"
            for row in rows[:MAX_LINES]
        ]
        return [*lines, "... and more"] if len(rows) > MAX_LINES else lines


# The follow that a notification is about: of the member, or of the post's author. Each
# column is compared with a value, so that the primary key is used.
_is_follower = table.c.post_id.is_(None)
_still_follows = sa.select(follows.c.follower_id).where(
    follows.c.follower_id
    == sa.case((_is_follower, table.c.actor_id), else_=table.c.user_id),
    follows.c.followed_id
    == sa.case((_is_follower, table.c.user_id), else_=table.c.actor_id),
)


def _until(entry: Entry) -> datetime:
    """Return when the post was published, also for a later batch."""
    text = entry.payload.get("until")
    return datetime.fromisoformat(str(text)) if text else entry.created_at


def _followers_after(entry: Entry, size: int) -> sa.Subquery:
    """Return the next followers of an author, in the order of following."""
    batch = sa.select(follows.c.follower_id, follows.c.created_at).where(
        follows.c.followed_id == entry.user_id, follows.c.created_at <= _until(entry)
    )
    if "after" in entry.payload:
        since = datetime.fromisoformat(str(entry.payload["since"]))
        last = sa.tuple_(
            sa.literal(since, follows.c.created_at.type),
            sa.literal(int(entry.payload["after"]), sa.BigInteger),
        )
        row_key = sa.tuple_(follows.c.created_at, follows.c.follower_id)
        batch = batch.where(row_key > last)
    batch = batch.order_by(follows.c.created_at, follows.c.follower_id).limit(size)
    return batch.subquery("batch")


async def _with_digest(connection: AsyncConnection, ids: Sequence[int]) -> set[int]:
    """Return those of these members whose settings require a digest."""
    query = sa.select(user_settings.c.user_id).where(
        user_settings.c.user_id.in_(ids), user_settings.c.digest
    )
    return set((await connection.execute(query)).scalars())


async def _mark_sent(
    connection: AsyncConnection, ids: Sequence[int], now: datetime
) -> None:
    statement = sa.update(table).where(table.c.id.in_(ids)).values(told_at=now)
    await connection.execute(statement)
