"""Notifications of members in Postgres: written once, mailed one by one or as a digest.

A notification and the outbox entry of its e-mail are written in one transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, insert

from server.domain.clock import Clock
from server.domain.outbox.emails import NotificationRange
from server.domain.outbox.entries import Entry, EventType, NewEntry
from server.domain.posts.posts import PostState
from server.store.change_records import record
from server.store.connections.connect import Database
from server.store.tables import follows, outbox, posts, user_settings, users
from server.store.tables import notifications as table

BATCH_SIZE = 500  # followers per transaction, which takes about 50 ms
BATCHES_PER_ENTRY = 20
MAX_LINES = 20  # per e-mail
_actors = users.alias()
_CAN_READ_MAIL = sa.and_(users.c.is_active, users.c.deleted_at.is_(None))


class PostgresNotifications:
    """Stores notifications."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        batch_size: int = BATCH_SIZE,
        batches_per_entry: int = BATCHES_PER_ENTRY,
    ) -> None:
        self._database = database
        self._clock = clock
        self._batch_size = batch_size
        self._batches_per_entry = batches_per_entry

    async def fan_out(self, entry: Entry) -> None:
        """Notify followers of a post, if their settings require it.

        Each batch is one transaction, which also stores the progress in the entry:
        after a crash the entry is delivered again and continues there. Further batches
        are an entry of their own, because a delivery must end. Those who followed
        after the publication are not notified.
        """
        progress = entry.payload
        for _ in range(self._batches_per_entry):
            statement = _notify_batch(entry, progress, self._batch_size, self._clock())
            async with self._database.reading() as connection:
                row = (await connection.execute(statement)).first()
            self._database.announce()
            if row is None:
                return
            progress = row.payload
        next_entry = NewEntry(EventType.POST_FAN_OUT, entry.user_id, payload=progress)
        async with self._database.transaction() as connection:
            await record(connection, self._clock(), next_entry)

    async def follower(self, entry: Entry) -> None:
        """Notify a member of a follower, if their settings require it."""
        follower_id = int(entry.payload["follower"])
        recipients = (
            sa.select(
                follows.c.followed_id.label("user_id"),
                follows.c.follower_id.label("actor_id"),
                sa.null().cast(sa.BigInteger).label("post_id"),
                user_settings.c.digest,
            )
            .join_from(follows, users, users.c.id == follows.c.followed_id)
            .join(user_settings, user_settings.c.user_id == users.c.id)
            .where(follows.c.follower_id == follower_id)
            .where(follows.c.followed_id == entry.user_id)
            .where(user_settings.c.new_followers, _CAN_READ_MAIL)
        )
        mails = _insert_mails(recipients, EventType.NEW_FOLLOWER, self._clock())
        async with self._database.reading() as connection:
            await connection.execute(sa.select(sa.literal(1)).add_cte(mails))
        self._database.announce()

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
                await record(connection, now, mail)
        return True

    async def lines_of(
        self, ranges: Sequence[NotificationRange]
    ) -> Mapping[NotificationRange, Sequence[str]]:
        """Return the lines of an e-mail for each range.

        A notification has no line if its post or follow is gone, or if the member has
        turned this kind off.
        """
        query = (
            sa.select(_ranges.c.place, _lines.c.username, _lines.c.title)
            .join_from(_ranges, _lines, sa.true())
            .order_by(_ranges.c.place, _lines.c.id)
        )
        arrays = {
            name: [getattr(item, name) for item in ranges] for name in _RANGE_FIELDS
        }
        async with self._database.reading() as connection:
            rows = (await connection.execute(query, arrays)).all()
        lines: dict[NotificationRange, list[str]] = {item: [] for item in ranges}
        for row in rows:
            lines[ranges[row.place - 1]].append(_line(row.username, row.title))
        return {item: _limited(lines[item]) for item in ranges}


def _line(username: str, title: str | None) -> str:
    return f"{username}: {title}" if title else f"{username} follows you"


def _limited(lines: Sequence[str]) -> Sequence[str]:
    too_many = len(lines) > MAX_LINES
    return [*lines[:MAX_LINES], "... and more"] if too_many else lines


# The follow that a notification is about: of the member by the actor or, for a post, of
# the actor by the member. Written so that the primary key finds it.
_is_follow = table.c.post_id.is_(None)
_still_follows = sa.select(follows.c.follower_id).where(
    follows.c.follower_id
    == sa.case((_is_follow, table.c.actor_id), else_=table.c.user_id),
    follows.c.followed_id
    == sa.case((_is_follow, table.c.user_id), else_=table.c.actor_id),
)

_RANGE_FIELDS = ("user_id", "first", "last")
_ranges = (
    sa.func.unnest(
        *(sa.bindparam(name, type_=ARRAY(sa.BigInteger())) for name in _RANGE_FIELDS)
    )
    .table_valued(
        *(sa.column(name, sa.BigInteger) for name in _RANGE_FIELDS),
        with_ordinality="place",
        name="ranges",
    )
    .render_derived()
)
_enabled = sa.case(
    (table.c.post_id.is_(None), user_settings.c.new_followers),
    else_=user_settings.c.followed_posts,
)
_lines = (
    sa.select(table.c.id, _actors.c.username, posts.c.title)
    .join_from(table, _actors, _actors.c.id == table.c.actor_id)
    .join(user_settings, user_settings.c.user_id == table.c.user_id)
    .outerjoin(posts, posts.c.id == table.c.post_id)
    .where(table.c.user_id == _ranges.c.user_id)
    .where(table.c.id.between(_ranges.c.first, _ranges.c.last))
    .where(_enabled, sa.exists(_still_follows), _actors.c.deleted_at.is_(None))
    .where(sa.or_(table.c.post_id.is_(None), posts.c.state == PostState.PUBLISHED))
    .order_by(table.c.id)
    .limit(MAX_LINES + 1)
    .lateral("lines")
)


def _notify_batch(
    entry: Entry, progress: Mapping[str, str | int], size: int, now: datetime
) -> sa.UpdateBase:
    """Return the statement for one batch; it returns the progress if it was full."""
    until = progress.get("until")
    until_moment = datetime.fromisoformat(str(until)) if until else entry.created_at
    batch = _followers_after(entry.user_id, progress, until_moment, size)
    # LIMIT 1 makes the planner look up each follower by primary key. Otherwise it reads
    # all members' settings for each batch: 65 ms at 100,000 members.
    follower = (
        sa.select(user_settings.c.digest)
        .join(users, users.c.id == user_settings.c.user_id)
        .where(user_settings.c.user_id == batch.c.follower_id)
        .where(user_settings.c.followed_posts, _CAN_READ_MAIL)
        .limit(1)
        .lateral("follower")
    )
    recipients = (
        sa.select(
            batch.c.follower_id.label("user_id"),
            sa.literal(entry.user_id, sa.BigInteger).label("actor_id"),
            posts.c.id.label("post_id"),
            follower.c.digest,
        )
        .join_from(batch, follower, sa.true())
        .join(posts, posts.c.id == int(progress["post"]))
        .where(posts.c.state == PostState.PUBLISHED)
        # in one order, so that two batches cannot deadlock
        .order_by(batch.c.follower_id)
    )
    place = (
        sa.select(
            sa.func.jsonb_build_object(
                "since", batch.c.created_at, "after", batch.c.follower_id
            )
        )
        .order_by(batch.c.created_at, batch.c.follower_id)
        .offset(size - 1)
        .scalar_subquery()
    )
    done = {"post": progress["post"], "until": until_moment.isoformat()}
    return (
        sa.update(outbox)
        .add_cte(_insert_mails(recipients, EventType.FOLLOWED_POST, now))
        .where(outbox.c.id == entry.id, place.is_not(None))
        .values(payload=sa.literal(done, JSONB).op("||")(place))
        .returning(outbox.c.payload)
    )


def _followers_after(
    author_id: int | None,
    progress: Mapping[str, str | int],
    until: datetime,
    size: int,
) -> sa.CTE:
    """Return the next followers of an author, in the order of following."""
    batch = sa.select(follows.c.follower_id, follows.c.created_at).where(
        follows.c.followed_id == author_id, follows.c.created_at <= until
    )
    if "after" in progress:
        since = datetime.fromisoformat(str(progress["since"]))
        last = sa.tuple_(
            sa.literal(since, follows.c.created_at.type),
            sa.literal(int(progress["after"]), sa.BigInteger),
        )
        row_key = sa.tuple_(follows.c.created_at, follows.c.follower_id)
        batch = batch.where(row_key > last)
    batch = batch.order_by(follows.c.created_at, follows.c.follower_id).limit(size)
    return batch.cte("batch")


def _insert_mails(recipients: sa.Select[Any], kind: EventType, now: datetime) -> sa.CTE:
    """Write the missing notifications, and an e-mail for each outside digests.

    One statement, so that no row passes through Python.
    """
    moment = sa.literal(now, table.c.created_at.type)
    wanted = recipients.cte("recipients")
    notified = (
        insert(table)
        .from_select(
            ["user_id", "actor_id", "post_id", "created_at", "told_at"],
            sa.select(
                wanted.c.user_id,
                wanted.c.actor_id,
                wanted.c.post_id,
                moment,
                sa.case((wanted.c.digest, sa.null()), else_=moment),
            ),
        )
        .on_conflict_do_nothing()
        .returning(table.c.id, table.c.user_id, table.c.told_at)
        .cte("notified")
    )
    payload = sa.func.jsonb_build_object("first", notified.c.id, "last", notified.c.id)
    mails = sa.select(
        sa.literal(kind, sa.Text), notified.c.user_id, payload, moment
    ).where(notified.c.told_at.is_not(None))
    return (
        sa.insert(outbox)
        .from_select(["kind", "user_id", "payload", "created_at"], mails)
        .cte("mails")
    )
