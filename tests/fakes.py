"""Stores in memory, held to the same suites as the real ones, and a clock by hand."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from server.domain.auth import Account, Decide
from server.domain.errors import EmailTaken, UsernameTaken
from server.domain.limits import Bucket, Refusal
from server.domain.paging import PageRequest, Rows, Sort
from server.domain.requests import AnswerExists, Once, RequestKey, StoredAnswer
from server.domain.sessions import Rotation, Session
from server.domain.users import SORT_VALUES, NewUser, User, UserFilter, fold

NOON = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)


@dataclass(slots=True)
class Clock:
    """Stands still until it is moved."""

    now: datetime = NOON

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@dataclass(slots=True)
class FakeAnswers:
    """First answers, in memory."""

    kept: dict[RequestKey, tuple[StoredAnswer, datetime]] = field(default_factory=dict)

    async def find(self, key: RequestKey, since: datetime) -> StoredAnswer | None:
        stored, at = self.kept.get(key, (None, since))
        return stored if at >= since else None


@dataclass(slots=True)
class FakeUsers:
    """Accounts, in memory."""

    answers: FakeAnswers = field(default_factory=FakeAnswers)
    users: dict[int, User] = field(default_factory=dict)
    hashes: dict[int, str] = field(default_factory=dict)

    async def add(self, new: NewUser, once: Once[User] | None = None) -> User:
        if once and once.key in self.answers.kept:
            raise AnswerExists
        for user in self.users.values():
            if user.email == new.email:
                raise EmailTaken
            if fold(user.username) == fold(new.username):
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
        if once:
            stored = StoredAnswer(once.fingerprint, once.render(user))
            self.answers.kept[once.key] = (stored, once.answered_at)
        return user

    async def by_id(self, user_id: int) -> User | None:
        return self.users.get(user_id)

    async def page(
        self, wanted: UserFilter, sort: Sort, request: PageRequest
    ) -> Rows[User]:
        def place(user: User) -> tuple[object, int]:
            value: object = SORT_VALUES[sort.key](user)
            return (user.id if sort.key == "id" else value), user.id

        found = sorted(
            filter(lambda user: _matches(user, wanted), self.users.values()),
            key=place,
            reverse=sort.descending,
        )
        start = request.offset
        if after := request.after:
            ids = [user.id for user in found]
            start = ids.index(after.id) + 1
        items = found[start : start + request.size]
        return Rows(items, start + request.size < len(found), len(found), False)

    async def account(self, identifier: str) -> Account | None:
        for user in self.users.values():
            if identifier in (user.email, fold(user.username)):
                return self._account(user)
        return None

    async def account_by_id(self, user_id: int) -> Account | None:
        user = self.users.get(user_id)
        return self._account(user) if user else None

    def _account(self, user: User) -> Account:
        return Account(user.id, self.hashes[user.id], user.role, user.is_active)

    async def replace_hash(self, user_id: int, old: str, new: str) -> None:
        if self.hashes[user_id] == old:
            self.hashes[user_id] = new

    def disable(self, user_id: int) -> None:
        self.users[user_id] = replace(self.users[user_id], is_active=False)


def _matches(user: User, wanted: UserFilter) -> bool:
    return (
        (wanted.is_active is None or user.is_active is wanted.is_active)
        and fold(user.username).startswith(fold(wanted.username_prefix))
        and wanted.email in ("", user.email)
        and wanted.role in (None, user.role)
    )


@dataclass(slots=True)
class FakeSessions:
    """Sessions, in memory."""

    sessions: dict[UUID, Session] = field(default_factory=dict)

    async def add(self, session: Session) -> None:
        self.sessions[session.id] = session

    async def rotate(self, session_id: UUID, decide: Decide) -> Rotation | None:
        if session_id not in self.sessions:
            return None
        rotation = decide(self.sessions[session_id])
        self.sessions[session_id] = rotation.session
        return rotation

    async def end(self, session_id: UUID, now: datetime) -> None:
        session = self.sessions[session_id]
        self.sessions[session_id] = replace(session, ended_at=session.ended_at or now)


@dataclass(slots=True)
class NoLimits:
    """Lets every call through and remembers what was counted."""

    taken: list[Bucket] = field(default_factory=list)

    async def take(self, buckets: Sequence[Bucket]) -> Refusal | None:
        self.taken += buckets
        return None
