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
from server.domain.outbox.entries import Entry, EventType
from server.domain.posts.posts import NewPost, Post, PostState
from server.store.connect import Database
from server.store.members.analytics import PostgresAnalytics
from server.store.members.follows import PostgresFollows
from server.store.members.notifications import MAX_LINES, PostgresNotifications
from server.store.members.settings import PostgresSettings
from server.store.outbox import PostgresOutbox
from server.store.posts.posts import PostgresPosts
from server.store.tables import notifications, outbox, user_analytics
from server.workers.periodic_jobs import DIGEST_AFTER, PeriodicJobs
from tests.fakes import NOON, Clock
from tests.store.conftest import Stores
from tests.store.test_users import new

LEASE = timedelta(seconds=5)


class World:
    """The stores, and a dispatcher that the test drives."""

    def __init__(self, stores: Stores, database: Database) -> None:
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
        """Deliver every entry, each twice; return the mails that are due."""
        mails: list[Entry] = []
        while entries := await self.outbox.claim(10, LEASE, mails=True):
            for entry in entries:
                if entry.is_mail:
                    mails.append(entry)
                else:
                    await self.event_handlers.handle(entry)
                    await self.event_handlers.handle(entry)
                await self.outbox.delivered(entry.id, self.clock())
        return [mail for mail in mails if "first" in mail.payload]

    async def lines(self, mail: Entry) -> Sequence[str]:
        """Return the lines of a mail."""
        first, last = int(mail.payload["first"]), int(mail.payload["last"])
        return await self.notifications.lines(mail.user_id or 0, first, last)

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
async def world(real_stores: Stores, database: Database) -> World:
    return World(real_stores, database)


async def test_counts_follow_posts_and_follows(world: World) -> None:
    """Also when an event is delivered twice; deleted members are not counted."""
    ana, bea = await world.member("ana"), await world.member("bea")
    await world.follow(bea, ana)
    post = await world.post(ana)
    await world.post(ana, state=PostState.DRAFT)
    await world.deliver()
    assert await world.counts(ana) == (1, 1)
    await world.posts.edit(post.id, Edit({"state": PostState.DRAFT}, "", NOON))
    await world.deliver()
    assert await world.counts(ana) == (0, 1)
    await world.posts.edit(post.id, Edit({"state": PostState.PUBLISHED}, "", NOON))
    await world.users.delete(bea.id, NOON)
    await world.deliver()
    assert await world.counts(ana) == (1, 0)
    later = NOON + timedelta(seconds=1)
    await world.users.undelete(bea.id, NOON - timedelta(seconds=1), later)
    await world.posts.delete(post.id, "", NOON)
    await world.deliver()
    assert await world.counts(ana) == (0, 1)
    await world.follows.remove(bea.id, ana.id, NOON)
    await world.deliver()
    assert await world.counts(ana) == (0, 0)


async def test_counts_are_updated_once_for_many_events(
    world: World, database: Database
) -> None:
    """Counts that are not stale are not counted again."""
    ana = await world.member("ana")
    for number in range(5):
        await world.follow(await world.member(f"fan{number}"), ana)
    await world.deliver()
    analytics = PostgresAnalytics(database)
    assert await analytics.count(100, NOON) == 1
    assert await analytics.count(100, NOON) == 0
    await analytics.mark(10**9)  # a member who was erased meanwhile
    assert await analytics.count(100, NOON) == 0


async def test_post_notifies_followers_whose_settings_ask_for_it(world: World) -> None:
    """Each once; not deleted members, nor those who follow later."""
    ana = await world.member("ana")
    asks = await world.member("asks", followed_posts=True)
    others = [
        await world.member("never", new_followers=True),
        await world.member("default"),
        await world.member("gone", followed_posts=True),
    ]
    for who in (asks, *others):
        await world.follow(who, ana)
    await world.users.delete(others[-1].id, NOON)
    await world.deliver()
    post = await world.post(ana)
    world.clock.advance(1)
    await world.follow(await world.member("late", followed_posts=True), ana)
    (mail,) = await world.deliver()
    assert (mail.kind, mail.user_id) == (EventType.FOLLOWED_POST, asks.id)
    assert await world.lines(mail) == ["ana: On numbers"]
    for state in (PostState.DRAFT, PostState.PUBLISHED):
        await world.posts.edit(post.id, Edit({"state": state}, "", NOON))
    assert await world.deliver() == []


async def test_notification_omits_deleted_post_and_changed_setting(
    world: World,
) -> None:
    """A mail is composed when it is sent, from the data of that moment."""
    ana, bea = await world.member("ana"), await world.member("bea", followed_posts=True)
    await world.follow(bea, ana)
    post = await world.post(ana)
    (mail,) = await world.deliver()
    await world.settings.replace(bea.id, UserSettings(), "", NOON)
    assert await world.lines(mail) == []
    await world.settings.replace(bea.id, UserSettings(followed_posts=True), "", NOON)
    assert await world.lines(mail) == ["ana: On numbers"]
    await world.posts.delete(post.id, "", NOON)
    assert await world.lines(mail) == []


async def test_new_follower_is_notified_once(world: World) -> None:
    """Following again and again sends no further mail."""
    ana, bea = await world.member("ana", new_followers=True), await world.member("bea")
    for _ in range(3):
        await world.follow(bea, ana)
        await world.follows.remove(bea.id, ana.id, NOON)
    await world.follow(bea, ana)
    (mail,) = await world.deliver()
    assert (mail.kind, mail.user_id) == (EventType.NEW_FOLLOWER, ana.id)
    assert await world.lines(mail) == ["bea follows you"]


async def test_post_notifies_many_followers_in_chunks(world: World) -> None:
    """Each follower once, also when several followed at the same time."""
    small = PostgresNotifications(world.database, world.clock, batch_size=3)
    world.event_handlers = replace(world.event_handlers, notifications=small)
    ana = await world.member("ana")
    fans = [await world.member(f"fan{n}", followed_posts=True) for n in range(8)]
    for number, fan in enumerate(fans):
        await world.follow(fan, ana)
        world.clock.advance(number % 2)
    await world.deliver()
    await world.post(ana)
    mails = await world.deliver()
    assert sorted(mail.user_id or 0 for mail in mails) == [fan.id for fan in fans]
    fan_out = [r for r in await world.rows(outbox) if r.kind == EventType.POST_FAN_OUT]
    assert len(fan_out) >= 2


async def test_digest_is_sent_once_a_day(world: World) -> None:
    """All notifications in one mail, when the oldest is a day old."""
    ana, cat = await world.member("ana"), await world.member("cat")
    bea = await world.member(
        "bea", followed_posts=True, new_followers=True, digest=True
    )
    for whom in (ana, cat):
        await world.follow(bea, whom)
    await world.follow(cat, bea)
    for author in (ana, cat):
        await world.post(author, f"By {author.username}")
    assert await world.deliver() == []
    world.clock.now = NOON + DIGEST_AFTER
    await world.periodic_jobs.run_once()
    assert await world.deliver() == []
    world.clock.advance(1)
    await world.post(ana, "One more")
    await world.deliver()
    await world.periodic_jobs.run_once()
    await world.periodic_jobs.run_once()
    (mail,) = await world.deliver()
    assert (mail.kind, mail.user_id) == (EventType.DIGEST, bea.id)
    assert await world.lines(mail) == [
        "cat follows you",
        "ana: By ana",
        "cat: By cat",
        "ana: One more",
    ]
    assert all(row.told_at for row in await world.rows(notifications))


async def test_digest_omits_ended_follows(world: World) -> None:
    """A digest is composed when it is sent."""
    ana = await world.member("ana")
    bea = await world.member(
        "bea", followed_posts=True, new_followers=True, digest=True
    )
    cat = await world.member("cat")
    for who, whom in ((bea, ana), (ana, bea), (cat, bea)):
        await world.follow(who, whom)
    await world.post(ana)
    await world.deliver()
    world.clock.now = NOON + 2 * DIGEST_AFTER
    await world.periodic_jobs.run_once()
    (mail,) = await world.deliver()
    await world.follows.remove(bea.id, ana.id, world.clock())
    await world.follows.remove(ana.id, bea.id, world.clock())
    assert await world.lines(mail) == ["cat follows you"]


async def test_digest_with_more_lines_than_the_limit_ends_with_and_more(
    world: World,
) -> None:
    ana = await world.member("ana")
    bea = await world.member("bea", followed_posts=True, digest=True)
    await world.follow(bea, ana)
    for number in range(MAX_LINES + 1):
        await world.post(ana, f"Post {number}")
    await world.deliver()
    world.clock.now = NOON + 2 * DIGEST_AFTER
    await world.periodic_jobs.run_once()
    (mail,) = await world.deliver()
    lines = await world.lines(mail)
    assert (len(lines), lines[-1]) == (MAX_LINES + 1, "... and more")


async def test_last_seen_outlives_the_session(
    world: World, real_stores: Stores
) -> None:
    """It is the last use of the newest session, and stays when that is deleted."""
    ana = await world.member("ana")
    await real_stores.sessions.add(a_session(ana.id), 1)
    assert EventType.SESSION_OPENED in {row.kind for row in await world.rows(outbox)}
    await world.deliver()
    await world.periodic_jobs.run_once()
    (row,) = await world.rows(user_analytics)
    assert row.last_seen_at == NOON
    async with world.database.transaction() as connection:
        await connection.execute(sa.text("delete from sessions"))
    await PostgresAnalytics(world.database).mark(ana.id)
    await world.periodic_jobs.run_once()
    (row,) = await world.rows(user_analytics)
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
