"""Uses of the stores, by RPC or job, with the indexes that their statements read.

An index is named if it is what keeps the statement fast; others may be read, too.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from hashlib import sha256
from itertools import count
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import sqlalchemy as sa

from server.domain.accounts.users import NewUser, Role, UserEdit, UserFilter
from server.domain.audit import AuditEvent, AuditFilter
from server.domain.callers import Caller
from server.domain.clock import system_clock
from server.domain.credentials.mailed_tokens import MailedToken, Purpose
from server.domain.credentials.revocations import Revocations
from server.domain.credentials.sessions import Rotation, Session
from server.domain.edits import Edit
from server.domain.factors.challenges import ChallengeKind, Challenges, id_of
from server.domain.factors.relying_party import AuthenticatorState, NewPasskey
from server.domain.idempotency import IdempotencyRecord, RequestKey
from server.domain.identities.identities import NewAccount
from server.domain.identities.providers import ExternalIdentity
from server.domain.members.follows import Side
from server.domain.members.profiles import Profile
from server.domain.members.settings import Theme, UserSettings, Visibility
from server.domain.outbox.emails import NotificationRange
from server.domain.outbox.entries import Entry, EventType, NewEntry, Queue
from server.domain.paging import PageRequest, Position, Sort
from server.domain.posts.posts import NewPost, PostFilter, PostState, Reader
from server.store.accounts.erasure import Erasures
from server.store.accounts.new_versions import NewVersions
from server.store.accounts.personal_data import PostgresPersonalData
from server.store.accounts.user_batches import PostgresUserBatches
from server.store.accounts.user_cache import CachedUsers
from server.store.accounts.user_changes import UserChangeFeed
from server.store.accounts.user_reads import UserReads
from server.store.accounts.users import PostgresUsers
from server.store.audit import PostgresAudit
from server.store.change_records import record
from server.store.connections.connect import Database
from server.store.connections.signals import Signals
from server.store.credentials.accounts import PostgresAccounts
from server.store.credentials.impersonations import PostgresImpersonations
from server.store.credentials.mailed_tokens import PostgresMailedTokens
from server.store.credentials.revocations import RevocationFeed
from server.store.credentials.sessions import PostgresSessions
from server.store.factors.challenges import PostgresChallenges
from server.store.factors.factors import PostgresFactors
from server.store.factors.identities import PostgresIdentities
from server.store.factors.login_codes import PostgresLoginCodes
from server.store.factors.passkeys import PostgresPasskeys
from server.store.factors.uses import PostgresFactorUses
from server.store.idempotent_responses import PostgresIdempotentResponses
from server.store.members.analytics import PostgresAnalytics
from server.store.members.follows import PostgresFollows
from server.store.members.metrics import PostgresMetrics
from server.store.members.notifications import PostgresNotifications
from server.store.members.profiles import PostgresProfiles
from server.store.members.settings import PostgresSettings
from server.store.outbox import PostgresOutbox
from server.store.posts.categories import PostgresCategories
from server.store.posts.posts import PostgresPosts
from server.store.redis.redis_client import RedisClient
from server.store.retention import PostgresRetention
from tests.store.filling import MEMBERS

A_DAY = timedelta(days=1)
PAGE = PageRequest(20)
LEASE = timedelta(minutes=1)


@dataclass(slots=True)
class FilledDatabase:
    """A filled database, and members of it that no case has used."""

    database: Database
    redis: RedisClient
    now: datetime = field(default_factory=system_clock)
    feed: RevocationFeed = field(init=False)
    _ids: "count[int]" = field(default_factory=lambda: count(1_001))

    def __post_init__(self) -> None:
        known = Revocations(system_clock)
        self.feed = RevocationFeed(self.database, self.redis, known, system_clock)

    @property
    def member(self) -> int:
        """The id of another active member, who is not deleted."""
        return next(member for member in self._ids if member % 97 and member % 500)

    @property
    def users(self) -> PostgresUsers:
        return PostgresUsers(self.database, self.feed)

    @property
    def sessions(self) -> PostgresSessions:
        return PostgresSessions(self.database, self.feed)

    @property
    def tokens(self) -> PostgresMailedTokens:
        return PostgresMailedTokens(self.database, self.feed, lambda _: None)

    @property
    def outbox(self) -> PostgresOutbox:
        return PostgresOutbox(self.database)

    @property
    def posts(self) -> PostgresPosts:
        return PostgresPosts(self.database)

    @property
    def factors(self) -> PostgresFactors:
        return PostgresFactors(self.database, self.feed)

    @property
    def notifications(self) -> PostgresNotifications:
        return PostgresNotifications(self.database, system_clock)

    @property
    def erasures(self) -> Erasures:
        return Erasures(self.database, self.feed)

    async def value(self, query: str, **parameters: object) -> Any:
        async with self.database.reading() as connection:
            return (await connection.execute(sa.text(query), parameters)).scalar_one()

    async def session_of(self, member: int) -> UUID:
        query = "select id from sessions where user_id = :id and ended_at is null"
        async with self.database.transaction() as connection:
            update = "update sessions set ended_at = null where user_id = :id"
            await connection.execute(sa.text(update), {"id": member})
        session: UUID = await self.value(f"{query} limit 1", id=member)
        return session

    async def username_of(self, member: int) -> str:
        return str(
            await self.value("select username from users where id = :id", id=member)
        )

    async def post_of(self, member: int) -> int:
        query = "select id from posts where user_id = :id limit 1"
        return int(await self.value(query, id=member))

    def entry(self, **values: Any) -> Entry:
        entry = Entry(1, EventType.POST_FAN_OUT, 1, None, {}, self.now, 1)
        return Entry(**{f: getattr(entry, f) for f in Entry.__slots__} | values)


Case = Callable[[FilledDatabase], Awaitable[object]]
CASES: dict[str, tuple[Case, frozenset[str]]] = {}


def case(name: str, *indexes: str) -> Callable[[Case], Case]:
    """Register a use of stores, with the indexes that its statements must read."""

    def register(use: Case) -> Case:
        assert name not in CASES
        CASES[name] = use, frozenset(indexes)
        return use

    return register


@case("GetUser, BatchGetUsers", "pk_users")
async def get_users(filled: FilledDatabase) -> None:
    await filled.users.by_ids([filled.member])
    await filled.users.by_ids(range(2_000, 2_100))


def _lists_of_users() -> None:
    """Register a case for each kind of list, of its first page and of a later one."""
    filters = {
        "": UserFilter(),
        " of inactive ones": UserFilter(is_active=False),
        " by prefix": UserFilter(username_prefix="ana_12"),
        " by e-mail": UserFilter(email="ana_1@bench.invalid"),
        " by role": UserFilter(role=Role.ADMIN),
    }
    indexes = {
        "": "",
        " of inactive ones": "idx_users_inactive",
        " by prefix": "uq_users_username_folded",
        " by e-mail": "uq_users_email",
        " by role": "idx_users_role",
    }
    for name, user_filter in filters.items():

        async def first(
            filled: FilledDatabase, wanted: UserFilter = user_filter
        ) -> None:
            for key in ("id", "created_at", "username"):
                await filled.users.page(wanted, Sort(key, descending=True), PAGE)

        case(f"ListUsers{name}", *filter(None, [indexes[name]]))(first)

    for key, value, index in (
        ("id", "15000", "pk_users"),
        ("created_at", "2026-01-02T12:00:00+00:00", "idx_users_created_at"),
        ("username", "david_15000", "uq_users_username_folded"),
    ):

        async def later(
            filled: FilledDatabase, key: str = key, value: str = value
        ) -> None:
            after = PageRequest(20, after=Position(value, 15_000))
            await filled.users.page(UserFilter(), Sort(key), after)

        case(f"ListUsers by {key}, by token", index)(later)


_lists_of_users()


@case("CreateUser", "pk_request_answers")
async def create_user(filled: FilledDatabase) -> None:
    name, key = uuid4().hex, RequestKey("anonymous", "CreateUser", uuid4().hex)
    record: IdempotencyRecord[Any] = IdempotencyRecord(
        key, b"", filled.now, lambda _: b""
    )
    await filled.users.add(
        NewUser(f"{name}@bench.invalid", name, "hash", Role.STUDENT, filled.now), record
    )
    await PostgresIdempotentResponses(filled.database).find(key, filled.now)


@case("BatchCreateUsers", "uq_users_email")
async def batch_create_users(filled: FilledDatabase) -> None:
    taken = NewUser("ana_1@bench.invalid", "x", "hash", Role.STUDENT, filled.now)
    await PostgresUserBatches(filled.database).add_all([taken])


@case("UpdateUser", "pk_users", "idx_users_role")
async def update_user(filled: FilledDatabase) -> None:
    rename = UserEdit({"username": uuid4().hex}, "", filled.now)
    await filled.users.edit(filled.member, rename)
    demotion = UserEdit({"role": Role.STUDENT}, "", filled.now)
    await filled.users.edit(1, demotion)
    await filled.users.edit(1, UserEdit({"role": Role.ADMIN}, "", filled.now))
    change = UserEdit({"email": f"{uuid4().hex}@bench.invalid"}, "", filled.now)
    await filled.users.edit(filled.member, change)


@case("DeleteUser, UndeleteUser", "pk_users", "idx_sessions_user_id")
async def delete_user(filled: FilledDatabase) -> None:
    member = filled.member
    await filled.users.delete(member, filled.now)
    await filled.users.undelete(member, filled.now - A_DAY, filled.now)


@case(
    "EraseUser",
    "idx_sessions_user_id",
    "idx_outbox_user_id",
    "idx_outbox_address",
    "idx_request_answers_about",
    "idx_follows_follower_id",
    "idx_mailed_tokens_user_id",
    "idx_audit_events_user_id",
    "idx_audit_events_actor_id",
)
async def erase_user(filled: FilledDatabase) -> None:
    erasing = PostgresPersonalData(
        filled.database, filled.feed, lambda _: None, filled.erasures
    )
    await erasing.erase(filled.member, filled.now)


@case(
    "ExportUser",
    "idx_sessions_user_id",
    "idx_request_answers_about",
    "idx_follows_followed_id",
    "idx_notifications_user_id",
    "idx_factors_user_id",
    "idx_identities_user_id",
    "idx_challenges_user_id",
    "pk_recovery_codes",
    "idx_audit_events_actor_id",
    "idx_outbox_user_id",
    "idx_outbox_address",
)
async def export_user(filled: FilledDatabase) -> None:
    exporting = PostgresPersonalData(
        filled.database, filled.feed, lambda _: None, filled.erasures
    )
    async for _ in exporting.export(filled.member):
        pass


@case("ExportUsers", "pk_users")
async def export_users(filled: FilledDatabase) -> None:
    await filled.users.after(15_000, 500)


@case("WatchUsers", "pk_outbox")
async def watch_users(filled: FilledDatabase) -> None:
    feed = UserChangeFeed(filled.database, UserReads(filled.database))
    while feed.settled is None:
        await feed.refresh()
    await feed.newest()
    await feed.chunk(30_000, 100)


@case("Login", "uq_users_username_folded", "uq_users_email", "idx_sessions_user_id")
async def login(filled: FilledDatabase) -> None:
    member = filled.member
    accounts = PostgresAccounts(filled.database)
    account = await accounts.account(await filled.username_of(member))
    assert account
    await accounts.account(account.email)
    session = Session(
        uuid4(), member, b"t", b"", b"", filled.now, filled.now, filled.now + A_DAY,
        "198.18.0.1", "device",
    )  # fmt: skip
    assert await filled.sessions.add(session, account.version)
    await accounts.replace_hash(member, account.password_hash, "better")


@case("RefreshToken", "pk_sessions", "pk_users")
async def refresh_token(filled: FilledDatabase) -> None:
    def decide(session: Session, _: object) -> Rotation:
        values = {f: getattr(session, f) for f in Session.__slots__}
        return Rotation(Session(**values | {"last_used_at": filled.now}))

    session = await filled.session_of(filled.member)
    assert await filled.sessions.rotate(session, decide)


@case("Logout, RevokeSession", "pk_sessions")
async def logout(filled: FilledDatabase) -> None:
    member = filled.member
    session = await filled.session_of(member)
    assert await filled.sessions.end(session, filled.now, member)


@case("LogoutAll, ListSessions", "idx_sessions_user_id")
async def logout_all(filled: FilledDatabase) -> None:
    member = filled.member
    await filled.sessions.open_of(member, filled.now)
    await filled.sessions.end_all(member, filled.now)


@case("ChangePassword, ChangeEmail", "pk_sessions", "idx_mailed_tokens_user_id")
async def change_credentials(filled: FilledDatabase) -> None:
    member, accounts = filled.member, PostgresAccounts(filled.database)
    session = await filled.session_of(member)
    account = await accounts.account_by_id(member)
    assert account
    new_email = f"{uuid4().hex}@bench.invalid"
    assert await filled.sessions.request_email_change(
        account, new_email, session, filled.now
    )
    assert await filled.sessions.change_password(account, "new", session, filled.now)


async def _token(filled: FilledDatabase, member: int, purpose: Purpose) -> bytes:
    """Mint a token as the dispatcher does."""
    email = await filled.value("select email from users where id = :id", id=member)
    await filled.outbox.add(filled.now, NewEntry(EventType.VERIFICATION, member))
    entry = await filled.value("select max(id) from outbox")
    digest = uuid4().bytes
    expires_at = filled.now + A_DAY
    token = MailedToken(digest, purpose, member, email, entry, filled.now, expires_at)
    assert await filled.tokens.mint(token, 10)
    return digest


@case("ResetPassword", "pk_mailed_tokens", "idx_mailed_tokens_user_id", "pk_outbox")
async def reset_password(filled: FilledDatabase) -> None:
    digest = await _token(filled, filled.member, Purpose.RESET)
    assert await filled.tokens.owner(digest, Purpose.RESET, filled.now)
    await filled.tokens.reset_password(digest, "new", filled.now)


@case("VerifyEmail", "pk_mailed_tokens", "pk_users")
async def verify_email(filled: FilledDatabase) -> None:
    member = filled.member
    digest = await _token(filled, member, Purpose.VERIFY)
    assert await filled.tokens.verify_email(digest, filled.now) == member
    assert await filled.tokens.verify_email(digest, filled.now) == member


@case(
    "CreateTotpFactor, ConfirmTotpFactor",
    "idx_factors_user_id",
    "pk_sessions",
    "idx_sessions_user_id",
)
async def add_factor(filled: FilledDatabase) -> None:
    member, store = filled.member, filled.factors
    session = await filled.session_of(member)
    factor = await store.add_totp(member, "phone", b"secret", filled.now)
    assert await store.unconfirmed_totp(member, factor)
    caller = Caller(member, session.hex)
    await store.confirm_totp(caller, factor, 7, [b"code"], filled.now)


@case(
    "ListFactors, DeleteFactor, RegenerateRecoveryCodes",
    "pk_factors",
    "idx_factors_user_id",
    "pk_recovery_codes",
    "idx_identities_user_id",
)
async def delete_factor(filled: FilledDatabase) -> None:
    member, store = filled.member, filled.factors
    await store.replace_codes(member, [b"code"], filled.now)
    (factor,) = (await store.all_of(member)).factors
    await store.delete(factor.id, 0, filled.now)


@case(
    "CompleteLogin, Reauthenticate",
    "pk_challenges",
    "idx_factors_user_id",
    "pk_factors",
    "pk_recovery_codes",
    "pk_sessions",
)
async def complete_login(filled: FilledDatabase) -> None:
    member, now = filled.member, filled.now
    challenges = Challenges(PostgresChallenges(filled.database), system_clock)
    token = await challenges.begin(ChallengeKind.LOG_IN, user_id=member)
    challenge = await challenges.attempt(ChallengeKind.LOG_IN, token)
    assert challenge
    assert await challenges.consume(challenge)
    uses = PostgresFactorUses(filled.database)
    (factor,) = await uses.totp_factors(member)
    assert await uses.use_totp(factor.id, 7, factor.secret, now)
    digest = sha256(str(member).encode()).digest()
    assert await uses.use_recovery_code(member, digest, now)
    session = await filled.session_of(member)
    assert await uses.reauthenticate(session, member, ["otp"], now)


@case("LoginWithCode", "pk_challenges")
async def issue_login_code(filled: FilledDatabase) -> None:
    challenges = Challenges(PostgresChallenges(filled.database), system_clock)
    nonce = await challenges.begin(ChallengeKind.LOGIN_CODE)
    store, challenge_id = PostgresLoginCodes(filled.database), id_of(nonce)
    # of another address: no code, but the rows are looked up
    assert not await store.issue(challenge_id, filled.member, "", {}, filled.now)


@case("ImpersonateUser", "pk_users", "pk_sessions")
async def impersonate_user(filled: FilledDatabase) -> None:
    member, admin = filled.member, filled.member
    session = await filled.session_of(admin)
    store = PostgresImpersonations(filled.database)
    acting = Session(
        uuid4(), member, b"", b"", b"", filled.now, filled.now, filled.now, "", "",
        actor_id=admin,
    )  # fmt: skip
    # as no admin: nothing is written, but the rows are looked up
    assert await store.add(acting, 1, session) is None


@case(
    "CreatePasskey, ConfirmPasskey, CompletePasskeyLogin",
    "idx_factors_user_id",
    "uq_factors_credential_id",
    "pk_factors",
)
async def use_passkey(filled: FilledDatabase) -> None:
    member, now = filled.member, filled.now
    store = PostgresPasskeys(filled.database, filled.feed)
    passkey_id = await store.add(member, "laptop", now)
    assert await store.is_unconfirmed(member, passkey_id)
    session = await filled.session_of(member)
    new = NewPasskey(str(member).encode(), b"key", 0, False)
    await store.confirm(Caller(member, session.hex), passkey_id, new, (), now)
    assert await store.credentials(member)
    assert await store.by_credential(new.credential_id)
    assert await store.use(passkey_id, AuthenticatorState(7, False), now)
    await store.report_copy(passkey_id, now)


@case(
    "CompleteFederatedLogin, ListIdentities, UnlinkIdentity",
    "uq_identities_issuer_subject",
    "idx_identities_user_id",
    "pk_users",
    "pk_sessions",
)
async def use_identities(filled: FilledDatabase) -> None:
    member, now, store = filled.member, filled.now, PostgresIdentities(filled.database)
    issuer = "https://id.example"
    known = ExternalIdentity("example", "Example", issuer, str(member))
    assert await store.use(known, now) == member
    account = await PostgresAccounts(filled.database).account_by_id(member)
    assert account
    caller = Caller(member, (await filled.session_of(member)).hex)
    await store.link(replace(known, subject="another"), account, caller, now)
    _, linked = await store.all_of(member)
    await store.unlink(member, linked.id, now)
    new = NewAccount("new@id.example", "new_of_example")
    await store.create_account(replace(known, subject="new"), new, now)


@case("WatchRevocations", "idx_revocations_written_by", "pk_revocations")
async def watch_revocations(filled: FilledDatabase) -> None:
    feed = filled.feed
    _, present = await feed.resume_from(0)
    await feed.chunk(0, 10_000, 100)
    await feed.chunk(present, 0, 100)


@case(
    "ListAuditEvents",
    "pk_audit_events",
    "idx_audit_events_user_id",
    "idx_audit_events_event",
    "idx_audit_events_at",
)
async def list_audit_events(filled: FilledDatabase) -> None:
    audit = PostgresAudit(filled.database)
    event = AuditEvent(0, filled.now, "x", "anonymous", 0, "", "OK", "r")
    await audit.add(event)
    week_ago = filled.now - timedelta(days=7)
    for filters in (
        AuditFilter(),
        AuditFilter(user_id=filled.member),
        AuditFilter(event="EraseUser"),
        AuditFilter(since=filled.now - timedelta(hours=1)),
        AuditFilter(since=week_ago - timedelta(hours=1), until=week_ago),
    ):
        await audit.page(filters, None, 50)
        await audit.page(filters, 30_000, 50)


@case("profiles", "pk_user_profiles", "pk_user_settings")
async def profiles(filled: FilledDatabase) -> None:
    store, member = PostgresProfiles(filled.database), filled.member
    await store.by_user(member, include_private=False)
    await store.edit(member, Edit({"bio": "new"}, "", filled.now))
    user = await filled.users.add(
        NewUser(f"{uuid4().hex}@x.co", uuid4().hex, "h", Role.STUDENT, filled.now)
    )
    profile = Profile(user.id, "n", "", "", "en", "UTC", filled.now, filled.now)
    await store.add(profile)


@case("settings, Unsubscribe", "pk_user_settings", "pk_users")
async def settings(filled: FilledDatabase) -> None:
    store, member = PostgresSettings(filled.database), filled.member
    values = UserSettings(True, False, True, Theme.DARK, Visibility.MEMBERS)
    await store.by_user(member)
    await store.replace(member, values, "", filled.now)
    await store.turn_off(member, ["digest"], filled.now)


@case("FollowUser, UnfollowUser", "pk_follows", "pk_users")
async def follow_user(filled: FilledDatabase) -> None:
    store, member = PostgresFollows(filled.database), filled.member
    await store.add(member, MEMBERS - 1, filled.now)
    await store.remove(member, MEMBERS - 1, filled.now)


@case(
    "ListFollowers, ListFollowing", "idx_follows_followed_id", "idx_follows_follower_id"
)
async def list_follows(filled: FilledDatabase) -> None:
    store = PostgresFollows(filled.database)
    after = PageRequest(20, after=Position(filled.now.isoformat(), 1))
    for member in (1, filled.member):  # of many and of a few
        for side in Side:
            for request in (PAGE, after):
                await store.page(side, member, newest_first=True, request=request)


@case("GetUserScore", "idx_posts_user_id_published_at", "idx_follows_followed_id")
async def get_user_score(filled: FilledDatabase) -> None:
    await PostgresMetrics(filled.database).counts(1)
    await PostgresMetrics(filled.database).counts(filled.member)


@case("CreatePost, GetPost, UpdatePost, DeletePost", "pk_posts", "pk_users")
async def posts(filled: FilledDatabase) -> None:
    store, member = filled.posts, filled.member
    await store.add(NewPost(member, "t", "b", 1, PostState.PUBLISHED, filled.now))
    post = await filled.post_of(member)
    await store.by_id(post)
    await store.edit(post, Edit({"title": "new"}, "", filled.now))
    await store.delete(post, "", filled.now)


@case(
    "ListPosts",
    "idx_posts_created_at",
    "idx_posts_published_at",
    "idx_posts_user_id",
    "idx_posts_user_id_published_at",
    "idx_posts_category_id",
    "idx_posts_category_id_published_at",
)
async def list_posts(filled: FilledDatabase) -> None:
    reader = Reader(filled.member, sees_all=True)
    after = PageRequest(20, after=Position(filled.now.isoformat(), 1))
    for post_filter in (
        PostFilter(),
        PostFilter(author_id=filled.member),
        PostFilter(category_id=1),
    ):
        for key in ("created_at", "published_at"):
            for page in (PAGE, after):
                sort = Sort(key, descending=True)
                await filled.posts.page(post_filter, reader, sort, page)


@case("ExportPosts", "pk_posts")
async def export_posts(filled: FilledDatabase) -> None:
    await filled.posts.after(15_000, 100)


@case("DeleteCategory", "idx_posts_category_id_published_at")
async def delete_category(filled: FilledDatabase) -> None:
    store = PostgresCategories(filled.database)
    category = await store.add(uuid4().hex, "name", filled.now)
    await store.delete(category.id, "")


@case(
    "retention",
    "idx_sessions_expires_at",
    "idx_sessions_ended_at",
    "idx_revocations_ended_at",
    "idx_mailed_tokens_expires_at",
    "idx_challenges_expires_at",
    "idx_factors_unconfirmed",
    "idx_request_answers_answered_at",
    "idx_outbox_delivered_at",
    "idx_notifications_created_at",
    "idx_posts_deleted_at",
    "idx_audit_events_at",
)
async def retention(filled: FilledDatabase) -> None:
    rows = PostgresRetention(filled.database, timedelta(days=390), batch_size=100)
    for _, delete in rows.deletions(filled.now):
        await delete()


@case("erasures that are due", "idx_users_deleted_at")
async def due_erasures(filled: FilledDatabase) -> None:
    await filled.erasures.due(filled.now - timedelta(days=30), 0, 100)


@case(
    "recounts",
    "idx_user_analytics_stale",
    "idx_follows_followed_id",
    "idx_sessions_user_id",
)
async def recounts(filled: FilledDatabase) -> None:
    store = PostgresAnalytics(filled.database)
    await store.mark(filled.member)
    await store.mark_followed_by(filled.member)
    await store.count(100, filled.now)


@case("digests", "idx_notifications_told_at", "idx_notifications_user_id")
async def digests(filled: FilledDatabase) -> None:
    assert await filled.notifications.digest(filled.now - A_DAY, filled.now)


@case("fan-out", "idx_follows_followed_id", "pk_posts", "pk_user_settings")
async def fan_out(filled: FilledDatabase) -> None:
    post = await filled.post_of(2)
    store = PostgresNotifications(filled.database, system_clock, batch_size=100)
    await store.fan_out(filled.entry(user_id=2, payload={"post": post}))
    payload = {"post": post, "since": "2026-01-02T12:00:00+00:00", "after": 1}
    await store.fan_out(filled.entry(user_id=2, payload=payload))
    follower = await filled.value(
        "select follower_id from follows where followed_id = 2 limit 1"
    )
    await store.follower(filled.entry(user_id=2, payload={"follower": follower}))
    await store.lines_of([NotificationRange(2, 1, 40_000)])


@case("outbox", "idx_outbox_due", "idx_outbox_dead", "pk_outbox")
async def outbox(filled: FilledDatabase) -> None:
    store = filled.outbox
    await store.refresh_backlog()
    await store.claim({Queue.EVENTS: 3}, LEASE)
    async with filled.database.transaction() as connection:
        mails = [NewEntry(EventType.NEW_FOLLOWER, filled.member)] * 4
        await record(connection, filled.now, *mails)
    first, second, third, fourth = await store.claim(
        {Queue.NOTIFICATION_MAILS: 4}, LEASE
    )
    await store.renew([first.id], LEASE)
    await store.release([first.id])
    await store.delivered([first.id], filled.now)
    await store.retry(second.id, LEASE, "cause")
    await store.drop([third.id])
    await store.dead_letter(fourth.id, filled.now, "cause")
    await store.dead_letters()
    await store.requeue([fourth.id])


@case("limits of e-mails", "idx_outbox_user_id")
async def mail_limits(filled: FilledDatabase) -> None:
    since = filled.now - A_DAY
    await filled.outbox.delivered_since(EventType.FAILED_LOG_INS, filled.member, since)


@case("start of the cache", "idx_users_updated_at", "idx_outbox_delivered_at")
async def start_of_cache(filled: FilledDatabase) -> None:
    changes = UserChangeFeed(filled.database, UserReads(filled.database))
    cache = CachedUsers(filled.database, filled.redis, filled.feed, changes).cache
    await cache._start(0)


@case("new versions of accounts", "pk_outbox")
async def new_versions(filled: FilledDatabase) -> None:
    versions = NewVersions(filled.database, lambda: 0, 0)
    versions._after, versions._missing = 30_000, {7}
    await versions.read(cast(Signals, SimpleNamespace(newest_id=30_001)))


@case("revocations", "idx_revocations_written_by")
async def refresh_revocations(filled: FilledDatabase) -> None:
    await filled.feed.refresh()
