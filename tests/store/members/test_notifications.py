"""Statistics and notifications that follow from posts and follows, each once."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest_asyncio
import sqlalchemy as sa

from server.domain.accounts.users import User
from server.domain.credentials.sessions import Session
from server.domain.edits import Edit
from server.domain.members.event_handlers import MemberEventHandlers
from server.domain.members.settings import UserSettings
from server.domain.outbox.emails import NotificationRange
from server.domain.outbox.entries import Entry, EventType, Queue
from server.domain.posts.posts import NewPost, Post, PostState
from server.store.connections.connect import Database
from server.store.members.analytics import PostgresAnalytics
from server.store.members.follows import PostgresFollows
from server.store.members.notifications import MAX_LINES, PostgresNotifications
from server.store.members.settings import PostgresSettings
from server.store.outbox import PostgresOutbox
from server.store.posts.posts import PostgresPosts
from server.store.tables import notifications, outbox, user_analytics
from server.workers.periodic_jobs import DIGEST_AFTER, PeriodicJobs
from tests.fakes import NOON, Clock
from tests.store.conftest import StoresUnderTest
from tests.store.test_users import new

LEASE = timedelta(seconds=5)
SIZES = dict.fromkeys(Queue, 10)


class NotificationHarness:
    """The stores, and a dispatcher that the test drives."""

    def __init__(self, stores: StoresUnderTest, database: Database) -> None:
        self.users, self.database, self.clock = stores.users, database, Clock()
        self.outbox = PostgresOutbox(database)
        self.posts, self.follows = PostgresPosts(database), PostgresFollows(database)
        self.settings = PostgresSettings(database)
        self.notifications = PostgresNotifications(database, self.clock)
        counts = PostgresAnalytics(database)
        self.event_handlers = MemberEventHandlers(counts, self.notifications)
        self.periodic_jobs = PeriodicJobs(counts, self.notifications, self.clock)

    async def member(self, name: str, **settings: bool) -> User:
        user = await self.users.add(new(name))
        if settings:
            values = replace(UserSettings(), **settings)  # type: ignore[arg-type]  # all bool
            await self.settings.replace(user.id, values, "", NOON)
        return user

    async def follow(self, follower: User, followed: User) -> None:
        await self.follows.add(follower.id, followed.id, self.clock())

    async def post(
        self,
        author: User,
        title: str = "On numbers",
        state: PostState = PostState.PUBLISHED,
    ) -> Post:
        made = NewPost(author.id, title, "body", 0, state, self.clock())
        return await self.posts.add(made)

    async def deliver(self) -> list[Entry]:
        """Deliver every entry, each twice; return the e-mails that are due."""
        mails: list[Entry] = []
        while entries := await self.outbox.claim(SIZES, LEASE):
            for entry in entries:
                if entry.is_mail:
                    mails.append(entry)
                else:
                    await self.event_handlers.handle(entry)
                    await self.event_handlers.handle(entry)
                await self.outbox.delivered([entry.id], self.clock())
        return [mail for mail in mails if "first" in mail.payload]

    async def lines(self, mail: Entry) -> Sequence[str]:
        """Return the lines of an e-mail."""
        first, last = int(mail.payload["first"]), int(mail.payload["last"])
        wanted = NotificationRange(mail.user_id or 0, first, last)
        return (await self.notifications.lines_of([wanted]))[wanted]

    async def counts(self, user: User) -> tuple[int, int]:
        """Run the jobs; return the counted posts and followers."""
        await self.periodic_jobs.run_once()
        query = sa.select(user_analytics.c.posts, user_analytics.c.followers)
        mine = query.where(user_analytics.c.user_id == user.id)
        async with self.database.reading() as connection:
            posts, followers = (await connection.execute(mine)).one()
        return posts, followers

    async def rows(self, table: sa.Table) -> Sequence[Any]:
        async with self.database.reading() as connection:
            return (await connection.execute(sa.select(table))).all()


@pytest_asyncio.fixture
async def harness(
    real_stores: StoresUnderTest, database: Database
) -> NotificationHarness:
    return NotificationHarness(real_stores, database)


async def test_counts_follow_posts_and_follows(harness: NotificationHarness) -> None:
    """Also when an event is delivered twice; deleted members are not counted."""
    ana, bea = await harness.member("ana"), await harness.member("bea")
    await harness.follow(bea, ana)
    post = await harness.post(ana)
    await harness.post(ana, state=PostState.DRAFT)
    await harness.deliver()
    assert await harness.counts(ana) == (1, 1)
    await harness.posts.edit(post.id, Edit({"state": PostState.DRAFT}, "", NOON))
    await harness.deliver()
    assert await harness.counts(ana) == (0, 1)
    await harness.posts.edit(post.id, Edit({"state": PostState.PUBLISHED}, "", NOON))
    await harness.users.delete(bea.id, NOON)
    await harness.deliver()
    assert await harness.counts(ana) == (1, 0)
    later = NOON + timedelta(seconds=1)
    await harness.users.undelete(bea.id, NOON - timedelta(seconds=1), later)
    await harness.posts.delete(post.id, "", NOON)
    await harness.deliver()
    assert await harness.counts(ana) == (0, 1)
    await harness.follows.remove(bea.id, ana.id, NOON)
    await harness.deliver()
    assert await harness.counts(ana) == (0, 0)


async def test_counts_are_updated_once_for_many_events(
    harness: NotificationHarness, database: Database
) -> None:
    """Counts that are not stale are not counted again."""
    ana = await harness.member("ana")
    for number in range(5):
        await harness.follow(await harness.member(f"fan{number}"), ana)
    await harness.deliver()
    analytics = PostgresAnalytics(database)
    assert await analytics.count(100, NOON) == 1
    assert await analytics.count(100, NOON) == 0
    await analytics.mark(10**9)  # a member who was erased meanwhile
    assert await analytics.count(100, NOON) == 0


async def test_post_notifies_followers_whose_settings_ask_for_it(
    harness: NotificationHarness,
) -> None:
    """Each once; not deleted members, nor those who follow later."""
    ana = await harness.member("ana")
    asks = await harness.member("asks", followed_posts=True)
    others = [
        await harness.member("never", new_followers=True),
        await harness.member("default"),
        await harness.member("gone", followed_posts=True),
    ]
    for who in (asks, *others):
        await harness.follow(who, ana)
    await harness.users.delete(others[-1].id, NOON)
    await harness.deliver()
    post = await harness.post(ana)
    harness.clock.advance(1)
    await harness.follow(await harness.member("late", followed_posts=True), ana)
    (mail,) = await harness.deliver()
    assert (mail.kind, mail.user_id) == (EventType.FOLLOWED_POST, asks.id)
    assert await harness.lines(mail) == ["ana: On numbers"]
    for state in (PostState.DRAFT, PostState.PUBLISHED):
        await harness.posts.edit(post.id, Edit({"state": state}, "", NOON))
    assert await harness.deliver() == []


async def test_notification_omits_deleted_post_and_changed_setting(
    harness: NotificationHarness,
) -> None:
    """An e-mail is composed when it is sent, from the data of that moment."""
    ana, bea = (
        await harness.member("ana"),
        await harness.member("bea", followed_posts=True),
    )
    await harness.follow(bea, ana)
    post = await harness.post(ana)
    (mail,) = await harness.deliver()
    await harness.settings.replace(bea.id, UserSettings(), "", NOON)
    assert await harness.lines(mail) == []
    await harness.settings.replace(bea.id, UserSettings(followed_posts=True), "", NOON)
    assert await harness.lines(mail) == ["ana: On numbers"]
    await harness.posts.delete(post.id, "", NOON)
    assert await harness.lines(mail) == []


async def test_new_follower_is_notified_once(harness: NotificationHarness) -> None:
    """Following again and again sends no further e-mail."""
    ana, bea = (
        await harness.member("ana", new_followers=True),
        await harness.member("bea"),
    )
    for _ in range(3):
        await harness.follow(bea, ana)
        await harness.follows.remove(bea.id, ana.id, NOON)
    await harness.follow(bea, ana)
    (mail,) = await harness.deliver()
    assert (mail.kind, mail.user_id) == (EventType.NEW_FOLLOWER, ana.id)
    assert await harness.lines(mail) == ["bea follows you"]


async def test_post_notifies_many_followers_in_chunks(
    harness: NotificationHarness,
) -> None:
    """Each follower once, also when several followed at the same time."""
    small = PostgresNotifications(
        harness.database, harness.clock, batch_size=3, batches_per_entry=1
    )
    harness.event_handlers = replace(harness.event_handlers, notifications=small)
    ana = await harness.member("ana")
    fans = [await harness.member(f"fan{n}", followed_posts=True) for n in range(8)]
    for number, fan in enumerate(fans):
        await harness.follow(fan, ana)
        harness.clock.advance(number % 2)
    await harness.deliver()
    await harness.post(ana)
    mails = await harness.deliver()
    assert sorted(mail.user_id or 0 for mail in mails) == [fan.id for fan in fans]
    fan_out = [
        r for r in await harness.rows(outbox) if r.kind == EventType.POST_FAN_OUT
    ]
    assert len(fan_out) >= 2


async def test_fan_out_continues_after_its_last_batch(
    harness: NotificationHarness,
) -> None:
    """A process that was killed left the progress in the entry."""
    small = PostgresNotifications(harness.database, harness.clock, batch_size=3)
    ana = await harness.member("ana")
    fans = [await harness.member(f"fan{n}", followed_posts=True) for n in range(8)]
    for fan in fans:
        await harness.follow(fan, ana)
    await harness.deliver()
    await harness.post(ana)
    sizes, no_lease = {Queue.EVENTS: 1}, timedelta(0)
    (entry,) = await harness.outbox.claim(sizes, no_lease)
    await small.fan_out(entry)
    async with harness.database.reading() as connection:
        await connection.execute(sa.delete(notifications))
    (again,) = await harness.outbox.claim(sizes, no_lease)
    assert again.id == entry.id
    await small.fan_out(again)
    notified = {row.user_id for row in await harness.rows(notifications)}
    assert notified == {fan.id for fan in fans[6:]}


async def test_digest_is_sent_once_a_day(harness: NotificationHarness) -> None:
    """All notifications in one e-mail, when the oldest is a day old."""
    ana, cat = await harness.member("ana"), await harness.member("cat")
    bea = await harness.member(
        "bea", followed_posts=True, new_followers=True, digest=True
    )
    for whom in (ana, cat):
        await harness.follow(bea, whom)
    await harness.follow(cat, bea)
    for author in (ana, cat):
        await harness.post(author, f"By {author.username}")
    assert await harness.deliver() == []
    harness.clock.now = NOON + DIGEST_AFTER
    await harness.periodic_jobs.run_once()
    assert await harness.deliver() == []
    harness.clock.advance(1)
    await harness.post(ana, "One more")
    await harness.deliver()
    await harness.periodic_jobs.run_once()
    await harness.periodic_jobs.run_once()
    (mail,) = await harness.deliver()
    assert (mail.kind, mail.user_id) == (EventType.DIGEST, bea.id)
    assert await harness.lines(mail) == [
        "cat follows you",
        "ana: By ana",
        "cat: By cat",
        "ana: One more",
    ]
    assert all(row.told_at for row in await harness.rows(notifications))


async def test_digest_omits_ended_follows(harness: NotificationHarness) -> None:
    """A digest is composed when it is sent."""
    ana = await harness.member("ana")
    bea = await harness.member(
        "bea", followed_posts=True, new_followers=True, digest=True
    )
    cat = await harness.member("cat")
    for who, whom in ((bea, ana), (ana, bea), (cat, bea)):
        await harness.follow(who, whom)
    await harness.post(ana)
    await harness.deliver()
    harness.clock.now = NOON + 2 * DIGEST_AFTER
    await harness.periodic_jobs.run_once()
    (mail,) = await harness.deliver()
    await harness.follows.remove(bea.id, ana.id, harness.clock())
    await harness.follows.remove(ana.id, bea.id, harness.clock())
    assert await harness.lines(mail) == ["cat follows you"]


async def test_digest_with_more_lines_than_the_limit_ends_with_and_more(
    harness: NotificationHarness,
) -> None:
    ana = await harness.member("ana")
    bea = await harness.member("bea", followed_posts=True, digest=True)
    await harness.follow(bea, ana)
    for number in range(MAX_LINES + 1):
        await harness.post(ana, f"Post {number}")
    await harness.deliver()
    harness.clock.now = NOON + 2 * DIGEST_AFTER
    await harness.periodic_jobs.run_once()
    (mail,) = await harness.deliver()
    lines = await harness.lines(mail)
    assert (len(lines), lines[-1]) == (MAX_LINES + 1, "... and more")


async def test_last_seen_outlives_the_session(
    harness: NotificationHarness, real_stores: StoresUnderTest
) -> None:
    """It is the last use of the newest session, and stays when that is deleted."""
    ana = await harness.member("ana")
    await real_stores.sessions.add(a_session(ana.id), 1)
    assert EventType.SESSION_OPENED in {row.kind for row in await harness.rows(outbox)}
    await harness.deliver()
    await harness.periodic_jobs.run_once()
    (row,) = await harness.rows(user_analytics)
    assert row.last_seen_at == NOON
    async with harness.database.transaction() as connection:
        await connection.execute(sa.text("delete from sessions"))
    await PostgresAnalytics(harness.database).mark(ana.id)
    await harness.periodic_jobs.run_once()
    (row,) = await harness.rows(user_analytics)
    assert row.last_seen_at == NOON


def a_session(user_id: int) -> Session:
    return Session(
        id=uuid4(),
        user_id=user_id,
        token_hash=b"1",
        parent_hash=b"",
        nonce=b"",
        created_at=NOON,
        last_used_at=NOON,
        expires_at=NOON + timedelta(days=1),
        address="192.0.2.1",
        device="Phone",
    )
