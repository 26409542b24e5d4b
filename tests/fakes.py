"""Stores in memory, tested by the same suites as the real ones, and a manual clock."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from server.domain.accounts.users import (
    SORT_VALUES,
    NewUser,
    Role,
    User,
    UserEdit,
    UserFilter,
    normalize_identifier,
)
from server.domain.credentials.revocations import Revocations
from server.domain.credentials.service_keys import ServiceKey
from server.domain.credentials.sessions import Rotation, Session
from server.domain.credentials.stores import Account, Decide, Owner
from server.domain.errors import (
    EmailTaken,
    EtagMismatch,
    LastAdmin,
    TokenInvalid,
    UsernameTaken,
    UserNotFound,
)
from server.domain.factors.challenges import MAX_ATTEMPTS, Challenge, ChallengeKind
from server.domain.idempotency import (
    IdempotencyRecord,
    RequestKey,
    ResponseExists,
    StoredResponse,
)
from server.domain.outbox.entries import NewEntry
from server.domain.paging import PageRequest, Rows, Sort

NOON = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)


@dataclass(slots=True)
class Clock:
    """A clock that stands still until it is advanced."""

    now: datetime = NOON

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@dataclass(slots=True)
class FakeResponses:
    """First responses, in memory."""

    kept: dict[RequestKey, tuple[StoredResponse, datetime]] = field(
        default_factory=dict
    )

    async def find(self, key: RequestKey, since: datetime) -> StoredResponse | None:
        stored, at = self.kept.get(key, (None, since))
        return stored if at >= since else None


@dataclass(slots=True)
class FakeUsers:
    """Accounts, in memory."""

    answers: FakeResponses = field(default_factory=FakeResponses)
    users: dict[int, User] = field(default_factory=dict)
    hashes: dict[int, str] = field(default_factory=dict)
    deleted: dict[int, datetime] = field(default_factory=dict)

    async def add(
        self, new: NewUser, idempotency: IdempotencyRecord[User] | None = None
    ) -> User:
        if idempotency and idempotency.key in self.answers.kept:
            raise ResponseExists
        for user in self.users.values():
            if user.email == new.email:
                raise EmailTaken
            if normalize_identifier(user.username) == normalize_identifier(
                new.username
            ):
                raise UsernameTaken
        user = User(
            id=len(self.users) + 1,
            email=new.email,
            username=new.username,
            role=new.role,
            is_active=True,
            email_verified=False,
            created_at=new.created_at,
            updated_at=new.created_at,
            version=1,
        )
        self.users[user.id] = user
        self.hashes[user.id] = new.password_hash
        if idempotency:
            stored = StoredResponse(idempotency.fingerprint, idempotency.render(user))
            self.answers.kept[idempotency.key] = (stored, idempotency.answered_at)
        return user

    async def by_id(self, user_id: int) -> User | None:
        return None if user_id in self.deleted else self.users.get(user_id)

    async def by_ids(self, user_ids: Sequence[int]) -> Mapping[int, User]:
        users = [await self.by_id(user_id) for user_id in user_ids]
        return {user.id: user for user in users if user}

    async def after(self, user_id: int, size: int) -> Sequence[User]:
        users = [u for u in self.users.values() if u.id > user_id]
        return [user for user in users if user.id not in self.deleted][:size]

    async def edit(
        self,
        user_id: int,
        edit: UserEdit,
        idempotency: IdempotencyRecord[User] | None = None,
    ) -> User:
        before = await self.by_id(user_id)
        if before is None:
            raise UserNotFound(user_id)
        if edit.etag and edit.etag != before.etag:
            raise EtagMismatch(before.etag)
        for other in self.users.values():
            if other.id == user_id:
                continue
            if normalize_identifier(
                str(edit.values.get("username", ""))
            ) == normalize_identifier(other.username):
                raise UsernameTaken
            if edit.values.get("email") == other.email:
                raise EmailTaken
        values: dict[str, Any] = {
            name: value
            for name, value in edit.values.items()
            if getattr(before, name) != value
        }
        if not values:
            return before
        if edit.ends_sessions:
            self._refuse_last_admin(replace(before, **values))
        if "email" in values:
            values["email_verified"] = False
        version = before.version + 1
        user = replace(before, updated_at=edit.now, version=version, **values)
        self.users[user_id] = user
        return user

    async def delete(self, user_id: int, now: datetime) -> None:
        before = await self.by_id(user_id)
        if before is None:
            raise UserNotFound(user_id)
        self._refuse_last_admin(replace(before, is_active=False))
        self.deleted[user_id] = now

    async def undelete(
        self,
        user_id: int,
        deleted_after: datetime,
        now: datetime,
        idempotency: IdempotencyRecord[User] | None = None,
    ) -> User:
        if self.deleted.get(user_id, deleted_after) <= deleted_after:
            raise UserNotFound(user_id)
        del self.deleted[user_id]
        before = self.users[user_id]
        user = replace(before, updated_at=now, version=before.version + 1)
        self.users[user_id] = user
        return user

    def _refuse_last_admin(self, after: User) -> None:
        everyone = [after, *(u for u in self.users.values() if u.id != after.id)]
        was = self.users[after.id]
        if was.role is not Role.ADMIN or not was.is_active:
            return
        if not any(
            u.role is Role.ADMIN and u.is_active and u.id not in self.deleted
            for u in everyone
        ):
            raise LastAdmin

    async def page(
        self, wanted: UserFilter, sort: Sort, request: PageRequest
    ) -> Rows[User]:
        def place(user: User) -> tuple[object, int]:
            value: object = SORT_VALUES[sort.key](user)
            return (user.id if sort.key == "id" else value), user.id

        users = sorted(
            (
                user
                for user in self.users.values()
                if user.id not in self.deleted and _matches(user, wanted)
            ),
            key=place,
            reverse=sort.descending,
        )
        start = request.offset
        if after := request.after:
            ids = [user.id for user in users]
            start = ids.index(after.id) + 1
        items = users[start : start + request.size]
        return Rows(items, start + request.size < len(users), len(users), False)

    async def account(self, identifier: str) -> Account | None:
        for user in self.users.values():
            exists = user.id not in self.deleted
            if exists and identifier in (
                user.email,
                normalize_identifier(user.username),
            ):
                return self._account(user)
        return None

    async def account_by_id(self, user_id: int) -> Account | None:
        user = await self.by_id(user_id)
        return self._account(user) if user else None

    def _account(self, user: User) -> Account:
        hashed, version = self.hashes[user.id], user.version
        return Account(
            user.id,
            user.username,
            hashed,
            user.role,
            user.is_active,
            user.email,
            version,
        )

    async def replace_hash(self, user_id: int, old: str, new: str) -> None:
        if self.hashes[user_id] == old:
            self.hashes[user_id] = new

    def disable(self, user_id: int) -> None:
        before = self.users[user_id]
        version = before.version + 1
        self.users[user_id] = replace(before, is_active=False, version=version)


def _matches(user: User, wanted: UserFilter) -> bool:
    return (
        (wanted.is_active is None or user.is_active is wanted.is_active)
        and normalize_identifier(user.username).startswith(
            normalize_identifier(wanted.username_prefix)
        )
        and wanted.email in ("", user.email)
        and wanted.role in (None, user.role)
    )


@dataclass(slots=True)
class FakeSessions:
    """Sessions, in memory."""

    users: FakeUsers
    known: Revocations
    sessions: dict[UUID, Session] = field(default_factory=dict)

    async def add(self, session: Session, version: int) -> bool:
        if not await self._is_unchanged(session.user_id, version):
            return False
        self.sessions[session.id] = session
        for surplus in (await self.open_of(session.user_id, session.created_at))[50:]:
            await self.end(surplus.id, session.created_at)
        return True

    async def rotate(
        self, session_id: UUID, decide: Decide
    ) -> tuple[Rotation, Owner] | None:
        if session_id not in self.sessions:
            return None
        session = self.sessions[session_id]
        user = await self.users.by_id(session.user_id)
        owner = Owner(user.role, user.is_active) if user else Owner(Role.STUDENT, False)
        rotation = decide(session, owner)
        self.sessions[session_id] = rotation.session
        if rotation.session.ended_at:
            self.known.add(rotation.session.name, rotation.session.ended_at)
        return rotation, owner

    async def end(self, session_id: UUID, now: datetime, user_id: int = 0) -> int:
        session = self.sessions.get(session_id)
        if session is None or user_id not in (0, session.user_id):
            return 0
        self.sessions[session_id] = replace(session, ended_at=session.ended_at or now)
        self.known.add(session.name, now)
        return session.user_id

    async def end_all(
        self, user_id: int, now: datetime, keep: UUID | None = None
    ) -> None:
        for session in await self.open_of(user_id, now):
            if session.id != keep:
                await self.end(session.id, now)

    async def open_of(self, user_id: int, now: datetime) -> Sequence[Session]:
        sessions = [
            session
            for session in self.sessions.values()
            if session.user_id == user_id
            and not session.ended_at
            and session.expires_at > now
        ]
        return sorted(sessions, key=lambda session: session.created_at, reverse=True)

    async def request_email_change(
        self, account: Account, new_email: str, keep: UUID, now: datetime
    ) -> bool:
        self._check_open(keep)
        if not await self._is_unchanged(account.user_id, account.version):
            return False
        await self.end_all(account.user_id, now, keep)
        return True

    def _check_open(self, keep: UUID) -> None:
        if keep not in self.sessions or self.sessions[keep].ended_at:
            raise TokenInvalid("the session has ended")

    async def change_password(
        self,
        account: Account,
        hashed: str,
        keep: UUID,
        now: datetime,
        idempotency: IdempotencyRecord[None] | None = None,
    ) -> bool:
        self._check_open(keep)
        user_id = account.user_id
        if not await self._is_unchanged(user_id, account.version):
            return False
        before = self.users.users[user_id]
        self.users.users[user_id] = replace(before, version=before.version + 1)
        self.users.hashes[user_id] = hashed
        await self.end_all(user_id, now, keep)
        return True

    async def _is_unchanged(self, user_id: int, version: int) -> bool:
        user = await self.users.by_id(user_id)
        return user is not None and user.version == version


@dataclass(slots=True)
class FakeChallenges:
    """Challenges, in memory."""

    challenges: dict[UUID, Challenge] = field(default_factory=dict)

    async def add(self, challenge: Challenge) -> None:
        self.challenges[challenge.id] = challenge

    async def attempt(
        self, challenge_id: UUID, kind: ChallengeKind, secret_hash: bytes, now: datetime
    ) -> Challenge | None:
        stored = self.challenges.get(challenge_id)
        if (
            stored is None
            or (stored.kind, stored.secret_hash) != (kind, secret_hash)
            or stored.attempts >= MAX_ATTEMPTS
            or stored.expires_at <= now
        ):
            return None
        self.challenges[challenge_id] = replace(stored, attempts=stored.attempts + 1)
        return self.challenges[challenge_id]

    async def consume(self, challenge_id: UUID) -> bool:
        return self.challenges.pop(challenge_id, None) is not None


@dataclass(slots=True)
class FakeEmailOutbox:
    """Enqueued e-mails, in memory."""

    entries: list[NewEntry] = field(default_factory=list)

    async def add(
        self, now: datetime, *entries: NewEntry, audited: bool = False
    ) -> None:
        self.entries.extend(entries)


@dataclass(slots=True)
class FakeServiceKeys:
    """Service keys, in memory."""

    keys: dict[bytes, ServiceKey] = field(default_factory=dict)

    async def add(
        self,
        name: str,
        digest: bytes,
        private_fields: bool,
        now: datetime,
        expires_at: datetime | None,
    ) -> ServiceKey:
        number = len(self.keys) + 1
        key = ServiceKey(number, name, private_fields, now, expires_at, None)
        self.keys[digest] = key
        return key

    async def all(self) -> Sequence[ServiceKey]:
        return list(self.keys.values())

    async def revoke(self, key_id: int, now: datetime) -> bool:
        keys = {d: k for d, k in self.keys.items() if k.id != key_id}
        existed = len(keys) < len(self.keys)
        self.keys = keys
        return existed

    def known(self, digest: bytes) -> ServiceKey | None:
        return self.keys.get(digest)

    def named(self, name: str, now: datetime) -> ServiceKey | None:
        keys = self.keys.values()
        named = [key for key in keys if key.name == name and key.is_valid(now)]
        return max(named, key=lambda key: key.id, default=None)
