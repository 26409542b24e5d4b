"""Accounts: signing up, reading and listing them, and who may see what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Protocol

from server.domain.callers import Caller
from server.domain.clock import Clock
from server.domain.credentials.passwords import (
    PasswordHasher,
    PasswordPolicy,
    check_password,
)
from server.domain.edits import check_writable
from server.domain.errors import InvalidFields, UserNotFound, Violation
from server.domain.idempotency import IdempotencyRecord
from server.domain.paging import (
    Page,
    PageParams,
    PageRequest,
    PageTokens,
    Position,
    Rows,
    Sort,
    paginate,
)


class Role(IntEnum):
    """What a user is in the academy; teachers have a student's rights."""

    STUDENT = 1
    TEACHER = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True)
class User:
    """An account without its password. `version` grows with every change."""

    id: int
    email: str
    username: str
    role: Role
    is_active: bool
    email_verified: bool
    created_at: datetime
    updated_at: datetime
    version: int

    @property
    def etag(self) -> str:
        """The version as callers write it."""
        return f"{self.version:x}"


@dataclass(frozen=True, slots=True)
class NewUser:
    """What a sign-up writes."""

    email: str
    username: str
    password_hash: str
    role: Role
    created_at: datetime


@dataclass(frozen=True, slots=True)
class UserFilter:
    """Which accounts a listing holds; None and "" let everything through."""

    is_active: bool | None = None
    username_prefix: str = ""
    email: str = ""
    role: Role | None = None


@dataclass(frozen=True, slots=True)
class UserEdit:
    """New values of fields by name, and the version that must be in force, if any."""

    values: Mapping[str, object]
    etag: str
    now: datetime

    @property
    def ends_sessions(self) -> bool:
        """Whether what tokens say of the account would no longer hold."""
        return "role" in self.values or self.values.get("is_active") is False


class UserStore(Protocol):
    """Keeps accounts."""

    async def add(
        self, new: NewUser, idempotency: IdempotencyRecord[User] | None = None
    ) -> User:
        """Write an account, and the answer that `once` makes of it.

        Raises EmailTaken, UsernameTaken, AnswerExists.
        """

    async def by_id(self, user_id: int) -> User | None:
        """Give the account with this id."""

    async def by_ids(self, user_ids: Sequence[int]) -> Mapping[int, User]:
        """Give the accounts that there are among these."""

    async def edit(
        self,
        user_id: int,
        edit: UserEdit,
        idempotency: IdempotencyRecord[User] | None = None,
    ) -> User:
        """Change an account, and end its sessions if the edit says so.

        Raises UserNotFound, EtagMismatch, LastAdmin, EmailTaken, UsernameTaken,
        AnswerExists.
        """

    async def delete(self, user_id: int, now: datetime) -> None:
        """Delete an account softly and end its sessions.

        Raises UserNotFound, LastAdmin.
        """

    async def undelete(
        self,
        user_id: int,
        deleted_after: datetime,
        now: datetime,
        idempotency: IdempotencyRecord[User] | None = None,
    ) -> User:
        """Bring back an account deleted since. Raises UserNotFound, AnswerExists."""

    async def page(
        self, wanted: UserFilter, sort: Sort, request: PageRequest
    ) -> Rows[User]:
        """Give one page, by at most two statements."""


WRITABLE = frozenset({"username"})
WRITABLE_BY_ADMINS = WRITABLE | {"email", "is_active", "role"}


def normalize_identifier(text: str) -> str:
    """Give the form that e-mail addresses and usernames are compared in.

    Both are ASCII by contract, where every fold agrees (CVE-2019-19844). Other text
    stays as it is: Unicode's fold makes a "k" of a Kelvin sign, and two letters of one.
    """
    return text.lower() if text.isascii() else text


SORT_VALUES: dict[str, Callable[[User], str]] = {
    "id": lambda user: str(user.id),
    "created_at": lambda user: user.created_at.isoformat(),
    "username": lambda user: normalize_identifier(user.username),
}


@dataclass(frozen=True, slots=True)
class Users:
    """The rules of accounts."""

    store: UserStore
    hasher: PasswordHasher
    tokens: PageTokens
    policy: PasswordPolicy
    retention: timedelta
    clock: Clock

    async def register(
        self,
        email: str,
        username: str,
        password: str,
        *,
        role: Role = Role.STUDENT,
        idempotency: IdempotencyRecord[User] | None = None,
    ) -> User:
        """Sign a person up.

        Raises InvalidFields for a weak password, EmailTaken, UsernameTaken.
        """
        check_password(password, username, self.policy, email=email)
        hashed = await self.hasher.hash(password)
        new = NewUser(normalize_identifier(email), username, hashed, role, self.clock())
        return await self.store.add(new, idempotency)

    async def get(self, user_id: int) -> User:
        """Give the account, or raise UserNotFound."""
        user = await self.store.by_id(user_id)
        if user is None:
            raise UserNotFound(user_id)
        return user

    async def get_many(self, user_ids: Sequence[int]) -> tuple[list[User], list[int]]:
        """Give the accounts found, and the ids of none, in the order asked for."""
        found = await self.store.by_ids(user_ids)
        wanted = dict.fromkeys(user_ids)
        users = [found[user_id] for user_id in wanted if user_id in found]
        return users, [user_id for user_id in wanted if user_id not in found]

    async def update(
        self,
        caller: Caller,
        user_id: int,
        values: Mapping[str, object],
        etag: str,
        idempotency: IdempotencyRecord[User] | None = None,
    ) -> User:
        """Change fields of an account.

        Raises InvalidFields for a field that the caller may not write, UserNotFound,
        EtagMismatch, LastAdmin, EmailTaken, UsernameTaken.
        """
        allowed = WRITABLE_BY_ADMINS if caller.is_admin else WRITABLE
        check_writable("user", values, allowed)
        edit = UserEdit(values, etag, self.clock())
        return await self.store.edit(user_id, edit, idempotency)

    async def delete(self, user_id: int) -> None:
        """Delete an account softly. Raises UserNotFound, LastAdmin."""
        await self.store.delete(user_id, self.clock())

    async def undelete(
        self, user_id: int, idempotency: IdempotencyRecord[User] | None = None
    ) -> User:
        """Bring a deleted account back. Raises UserNotFound."""
        now = self.clock()
        return await self.store.undelete(
            user_id, now - self.retention, now, idempotency
        )

    async def list(
        self, caller: Caller, wanted: UserFilter, sort: Sort, page_params: PageParams
    ) -> Page[User]:
        """Give one page. Raises InvalidFields for what is not for this caller."""
        _check_filter(caller, wanted)

        async def read(request: PageRequest) -> Rows[User]:
            return await self.store.page(wanted, sort, request)

        def end(last: User) -> Position:
            return Position(SORT_VALUES[sort.key](last), last.id)

        context = ["users", caller.subject, wanted, sort]
        return await paginate(page_params, self.tokens, context, read, end)


def _check_filter(caller: Caller, wanted: UserFilter) -> None:
    if caller.is_admin:
        return
    private = {"email": wanted.email, "role": wanted.role}
    broken = [
        Violation(name, "may be filtered by only by admins", "filter.admin_only")
        for name, value in private.items()
        if value
    ]
    if broken:
        raise InvalidFields(broken)
