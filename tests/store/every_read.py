"""One read of every kind, through every store; run by test_added_columns.py."""

from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

from server.domain.accounts.users import NewUser, Role, User, UserFilter
from server.domain.audit import AuditEvent, AuditFilter
from server.domain.callers import Caller
from server.domain.credentials.revocations import Revocations
from server.domain.credentials.sessions import Rotation, Session
from server.domain.edits import Edit
from server.domain.factors.challenges import Challenge, ChallengeKind
from server.domain.factors.factors import Factor, FactorList, TotpFactor
from server.domain.factors.methods import FactorType
from server.domain.members.follows import Side
from server.domain.members.profiles import Profile
from server.domain.members.scores import MemberCounts
from server.domain.members.settings import Theme, UserSettings, Visibility
from server.domain.outbox.entries import EventType, NewEntry, Queue
from server.domain.paging import PageRequest, Sort
from server.domain.posts.posts import NewPost, PostFilter, PostState, Reader
from server.store.accounts.erasure import Erasures
from server.store.accounts.personal_data import PostgresPersonalData
from server.store.accounts.user_batches import PostgresUserBatches
from server.store.accounts.users import PostgresUsers
from server.store.audit import PostgresAudit
from server.store.connections.connect import Database
from server.store.connections.guarded_redis import redis_client
from server.store.credentials.accounts import PostgresAccounts
from server.store.credentials.revocations import RevocationFeed
from server.store.credentials.service_keys import PostgresServiceKeys
from server.store.credentials.sessions import PostgresSessions
from server.store.factors.challenges import PostgresChallenges
from server.store.factors.factors import PostgresFactors
from server.store.factors.uses import PostgresFactorUses
from server.store.members.analytics import PostgresAnalytics
from server.store.members.follows import PostgresFollows
from server.store.members.metrics import PostgresMetrics
from server.store.members.profiles import PostgresProfiles
from server.store.members.settings import PostgresSettings
from server.store.outbox import PostgresOutbox
from server.store.posts.categories import PostgresCategories
from server.store.posts.posts import PostgresPosts
from tests.fakes import NOON, Clock

PAGE = PageRequest(5)


async def read_everything(database_url: str, redis_url: str) -> None:
    """Write to every table and check that what is read is what was written."""
    database, redis, clock = Database(database_url), redis_client(redis_url), Clock()
    feed = RevocationFeed(database, redis, Revocations(clock), clock)
    ana, bea = await accounts(database, PostgresUsers(database, feed))
    await sessions(PostgresSessions(database, feed), ana)
    await factors(database, feed, ana)
    await posts(database, ana)
    await members(database, ana, bea)
    await operations(database, ana)
    personal_data = PostgresPersonalData(
        database, feed, lambda _: None, Erasures(database, feed)
    )
    batches = [batch async for batch in personal_data.export(ana.id)]
    exported = {row["title"] for b in batches if b.section == "posts" for row in b.rows}
    assert exported == {"new"}
    await redis.aclose()
    await database.close()


async def accounts(database: Database, users: PostgresUsers) -> tuple[User, User]:
    ana = await users.add(NewUser("ana@example.com", "ana", "hash", Role.TEACHER, NOON))
    assert (ana.email, ana.role, ana.created_at) == (
        "ana@example.com", Role.TEACHER, NOON,
    )  # fmt: skip
    (bea,) = await PostgresUserBatches(database).add_all(
        [NewUser("bea@example.com", "bea", "hash", Role.STUDENT, NOON)]
    )
    assert isinstance(bea, User)
    assert await users.by_id(ana.id) == ana
    assert list((await users.page(UserFilter(), Sort("id"), PAGE)).items) == [ana, bea]
    account = await PostgresAccounts(database).account("ana")
    assert account
    assert (account.user_id, account.password_hash) == (ana.id, "hash")
    assert (account.role, account.email) == (Role.TEACHER, "ana@example.com")
    return ana, bea


async def sessions(store: PostgresSessions, ana: User) -> None:
    later = NOON + timedelta(days=1)
    session = Session(
        uuid4(), ana.id, b"t", b"p", b"n", NOON, NOON, later, "192.0.2.7", "device"
    )
    assert await store.add(session, ana.version)
    assert await store.open_of(ana.id, NOON) == [session]
    rotated = await store.rotate(session.id, lambda s, _: Rotation(s))
    assert rotated
    rotation, owner = rotated
    assert rotation.session == session
    assert (owner.role, owner.is_active) == (Role.TEACHER, True)


async def factors(database: Database, feed: RevocationFeed, ana: User) -> None:
    store, uses = PostgresFactors(database, feed), PostgresFactorUses(database)
    (session,) = await PostgresSessions(database, feed).open_of(ana.id, NOON)
    factor_id = await store.add_totp(ana.id, "phone", b"secret", NOON)
    assert await store.unconfirmed_totp(ana.id, factor_id) == TotpFactor(
        factor_id, b"secret", 0
    )
    caller = Caller(ana.id, session.name)
    factor, is_first = await store.confirm_totp(caller, factor_id, 7, [b"code"], NOON)
    assert is_first
    assert factor == Factor(factor_id, FactorType.TOTP, "phone", NOON, None)
    assert await store.all_of(ana.id) == FactorList([factor], 1)
    (totp,) = await uses.totp_factors(ana.id)
    assert totp == TotpFactor(factor_id, b"secret", 7)
    challenges = PostgresChallenges(database)
    later = NOON + timedelta(minutes=5)
    challenge = Challenge(
        uuid4(), ChallengeKind.LOG_IN, b"hash", NOON, later, ana.id, 2, "192.0.2.0/24",
        "device", data={"amr": ["pwd"]},
    )  # fmt: skip
    await challenges.add(challenge)
    attempt = await challenges.attempt(challenge.id, challenge.kind, b"hash", NOON)
    assert attempt == replace(challenge, attempts=1)


async def posts(database: Database, ana: User) -> None:
    categories, store = PostgresCategories(database), PostgresPosts(database)
    category = await categories.add("numbers", "Numbers", NOON)
    category = await categories.edit(category.id, Edit({"name": "N"}, "", NOON))
    assert (category.slug, category.name, category.version) == ("numbers", "N", 2)
    assert list((await categories.page(Sort("slug"), PAGE)).items) == [category]
    post = await store.add(
        NewPost(ana.id, "title", "body", category.id, PostState.PUBLISHED, NOON)
    )
    post = await store.edit(post.id, Edit({"title": "new"}, post.etag, NOON))
    assert (post.title, post.body, post.excerpt) == ("new", "body", "body")
    assert (post.author.username, post.category) == ("ana", category)
    assert (post.state, post.published_at) == (PostState.PUBLISHED, NOON)
    assert await store.by_id(post.id) == post
    assert list(await store.after(0, 5)) == [post]
    post_filter = PostFilter(with_body=True)
    reader, sort = Reader(ana.id, sees_all=False), Sort("published_at")
    assert list((await store.page(post_filter, reader, sort, PAGE)).items) == [post]


async def members(database: Database, ana: User, bea: User) -> None:
    profile = Profile(ana.id, "Ana", "bio", "url", "es", "UTC", NOON, NOON)
    profiles = PostgresProfiles(database)
    assert await profiles.add(profile) == profile
    assert await profiles.by_user(ana.id, include_private=False) == profile
    edited = await profiles.edit(ana.id, Edit({"bio": "new"}, "", NOON))
    assert (edited.bio, edited.version) == ("new", 2)
    settings = UserSettings(True, False, True, Theme.DARK, Visibility.MEMBERS)
    written = await PostgresSettings(database).replace(ana.id, settings, "", NOON)
    assert await PostgresSettings(database).by_user(ana.id) == written
    assert (written.theme, written.digest) == (Theme.DARK, True)
    await PostgresFollows(database).add(bea.id, ana.id, NOON)
    (follow,) = (
        await PostgresFollows(database).page(
            Side.FOLLOWERS, ana.id, newest_first=True, request=PAGE
        )
    ).items
    assert (follow.user, follow.since) == (bea, NOON)
    await PostgresAnalytics(database).mark(ana.id)
    assert await PostgresAnalytics(database).count(5, NOON) == 1
    counts = await PostgresMetrics(database).counts(ana.id)
    assert counts == MemberCounts(1, 1, NOON)


async def operations(database: Database, ana: User) -> None:
    event = AuditEvent(0, NOON, "e", "actor", ana.id, "192.0.2.7", "OK", "request")
    await PostgresAudit(database).add(event)
    (read,) = await PostgresAudit(database).page(AuditFilter(), None, 5)
    assert (read.at, read.event, read.actor) == (NOON, "e", "actor")
    assert (read.outcome, read.request_id) == ("OK", "request")
    keys = PostgresServiceKeys(database, Clock())
    key = await keys.add("service", b"digest", True, NOON, None)
    await keys.refresh()
    assert keys.known(b"digest") == key
    assert list(await keys.all()) == [key]
    outbox = PostgresOutbox(database)
    await outbox.add(NOON, NewEntry(EventType.SESSION_OPENED, ana.id, payload={"n": 1}))
    entries = await outbox.claim(dict.fromkeys(Queue, 100), timedelta(minutes=1))
    last = entries[-1]
    assert (last.kind, last.user_id, last.payload) == (
        EventType.SESSION_OPENED,
        ana.id,
        {"n": 1},
    )
    await outbox.dead_letter(last.id, NOON, "cause")
    (dead_letter,) = await outbox.dead_letters()
    assert (dead_letter.id, dead_letter.kind) == (last.id, EventType.SESSION_OPENED)
