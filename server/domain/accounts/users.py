"""Accounts: signing up, reading, listing and changing them, and who may do what."""

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
from server.domain.edits import Edit, check_writable, etag_of
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
    """A user's role in the academy; teachers have the same rights as students."""

    STUDENT = 1
    TEACHER = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True)
class User:
    """An account, without its password hash. Every change increments `version`."""

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
        """The etag of this version."""
        return etag_of(self.version)


@dataclass(frozen=True, slots=True)
class NewUser:
    """An account to create."""

    email: str
    username: str
    password_hash: str
    role: Role
    created_at: datetime


@dataclass(frozen=True, slots=True)
class UserFilter:
    """Which accounts a list holds; None and "" do not filter."""

    is_active: bool | None = None
    username_prefix: str = ""
    email: str = ""
    role: Role | None = None


@dataclass(frozen=True, slots=True)
class UserEdit(Edit):
    """A partial update of an account."""

    @property
    def ends_sessions(self) -> bool:
        """Whether the claims in access tokens become wrong by this edit."""
        return "role" in self.values or self.values.get("is_active") is False


class UserStore(Protocol):
    """Stores accounts."""

    async def add(
        self, new: NewUser, idempotency: IdempotencyRecord[User] | None = None
    ) -> User:
        """Write an account, and the idempotent response in the same transaction.

        Raises EmailTaken, UsernameTaken, ResponseExists.
        """

    async def by_id(self, user_id: int) -> User | None:
        """Return the account with this id, or None."""

    async def by_ids(self, user_ids: Sequence[int]) -> Mapping[int, User]:
        """Return the accounts with these ids, by id; unknown ids are left out."""

    async def edit(
        self,
        user_id: int,
        edit: UserEdit,
        idempotency: IdempotencyRecord[User] | None = None,
    ) -> User:
        """Change an account, and end its sessions if `edit.ends_sessions`.

        Raises UserNotFound, EtagMismatch, LastAdmin, EmailTaken, UsernameTaken,
        ResponseExists.
        """

    async def delete(self, user_id: int, now: datetime) -> None:
        """Soft-delete an account and end its sessions.

        Raises UserNotFound, LastAdmin.
        """

    async def undelete(
        self,
        user_id: int,
        deleted_after: datetime,
        now: datetime,
        idempotency: IdempotencyRecord[User] | None = None,
    ) -> User:
        """Restore an account that was deleted after `deleted_after`.

        Raises UserNotFound, ResponseExists.
        """

    async def page(
        self, user_filter: UserFilter, sort: Sort, request: PageRequest
    ) -> Rows[User]:
        """Return one page, read with at most two statements."""


WRITABLE = frozenset({"username"})
WRITABLE_BY_ADMINS = WRITABLE | {"email", "is_active", "role"}


def normalize_identifier(text: str) -> str:
    """Return the form in which e-mail addresses and usernames are compared.

    Both are ASCII by contract, where every case folding agrees (CVE-2019-19844). Other
    text is returned unchanged: Unicode folds a Kelvin sign to "k", and some single
    letters to two.
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
        """Create an account.

        Raises InvalidFields for a weak password, EmailTaken, UsernameTaken.
        """
        check_password(password, username, self.policy, email=email)
        password_hash = await self.hasher.hash(password)
        new_user = NewUser(
            normalize_identifier(email), username, password_hash, role, self.clock()
        )
        return await self.store.add(new_user, idempotency)

    async def get(self, user_id: int) -> User:
        """Return the account with this id. Raises UserNotFound."""
        user = await self.store.by_id(user_id)
        if user is None:
            raise UserNotFound(user_id)
        return user

    async def get_many(self, user_ids: Sequence[int]) -> tuple[list[User], list[int]]:
        """Return the accounts in the order of `user_ids`, and the unknown ids."""
        by_id = await self.store.by_ids(user_ids)
        unique_ids = dict.fromkeys(user_ids)
        users = [by_id[user_id] for user_id in unique_ids if user_id in by_id]
        return users, [user_id for user_id in unique_ids if user_id not in by_id]

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
        writable = WRITABLE_BY_ADMINS if caller.is_admin else WRITABLE
        check_writable("user", values, writable)
        edit = UserEdit(values, etag, self.clock())
        return await self.store.edit(user_id, edit, idempotency)

    async def delete(self, user_id: int) -> None:
        """Soft-delete an account. Raises UserNotFound, LastAdmin."""
        await self.store.delete(user_id, self.clock())

    async def undelete(
        self, user_id: int, idempotency: IdempotencyRecord[User] | None = None
    ) -> User:
        """Restore a deleted account within `retention`. Raises UserNotFound."""
        now = self.clock()
        return await self.store.undelete(
            user_id, now - self.retention, now, idempotency
        )

    async def list(
        self,
        caller: Caller,
        user_filter: UserFilter,
        sort: Sort,
        page_params: PageParams,
    ) -> Page[User]:
        """Return one page.

        Raises InvalidFields for a filter that this caller may not use, or a page that
        cannot be read.
        """
        _check_filter(caller, user_filter)

        async def read(request: PageRequest) -> Rows[User]:
            return await self.store.page(user_filter, sort, request)

        def position_of(user: User) -> Position:
            return Position(SORT_VALUES[sort.key](user), user.id)

        context = ["users", caller.subject, user_filter, sort]
        return await paginate(page_params, self.tokens, context, read, position_of)


def _check_filter(caller: Caller, user_filter: UserFilter) -> None:
    if caller.is_admin:
        return
    private = {"email": user_filter.email, "role": user_filter.role}
    violations = [
        Violation(name, "is a filter for admins only", "filter.admin_only")
        for name, value in private.items()
        if value
    ]
    if violations:
        raise InvalidFields(violations)
