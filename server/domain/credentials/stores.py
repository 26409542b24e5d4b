"""What the rules of sessions read and write: accounts, sessions and e-mail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

from server.domain.accounts.users import Role
from server.domain.credentials.sessions import Rotation, Session
from server.domain.factors.methods import FactorType
from server.domain.idempotency import IdempotencyRecord
from server.domain.outbox.entries import NewEntry


@dataclass(frozen=True, slots=True)
class Account:
    """The part of an account that a log-in needs.

    `version` grows with each change. `factors` are the kinds of its confirmed factors.
    """

    user_id: int
    username: str
    password_hash: str
    role: Role
    is_active: bool
    email: str = ""
    version: int = 1
    factors: Sequence[FactorType] = ()


@dataclass(frozen=True, slots=True)
class Owner:
    """The part of a session's owner that a refresh needs."""

    role: Role
    is_active: bool


class AccountStore(Protocol):
    """Finds accounts by identifier."""

    async def account(self, identifier: str) -> Account | None:
        """Return the account with this normalized username or e-mail address."""

    async def account_by_id(self, user_id: int) -> Account | None:
        """Return the account with this id."""

    async def replace_hash(self, user_id: int, old: str, new: str) -> None:
        """Replace the hash of a password by a better one, unless it has changed."""


Decide = Callable[[Session, Owner], Rotation]


class SessionStore(Protocol):
    """Stores sessions."""

    async def add(self, session: Session, version: int) -> bool:
        """Write a new session; False if the account has changed since this version.

        The password that was verified may no longer be the account's.
        """

    async def rotate(
        self, session_id: UUID, decide: Decide
    ) -> tuple[Rotation, Owner] | None:
        """Call `decide` with a session, and write the session of its result.

        Returns None if there is no such session. An exception of `decide` changes
        nothing.
        """

    async def end(self, session_id: UUID, now: datetime, user_id: int = 0) -> int:
        """End a session, of this user if one is named; return its user, 0 for none.

        Ending it again is no error. Every process is informed.
        """

    async def end_all(
        self, user_id: int, now: datetime, keep: UUID | None = None
    ) -> None:
        """End every session of a user but the one to keep."""

    async def open_of(self, user_id: int, now: datetime) -> Sequence[Session]:
        """Return a user's open sessions, the newest first."""

    async def request_email_change(
        self, account: Account, new_email: str, keep: UUID, now: datetime
    ) -> bool:
        """Enqueue an e-mail to the new and to the old address; end the other sessions.

        Returns False, and changes nothing, if the account has changed. Raises
        TokenInvalid if the session to keep has ended.
        """

    async def change_password(
        self,
        account: Account,
        hashed: str,
        keep: UUID,
        now: datetime,
        idempotency: IdempotencyRecord[None] | None = None,
    ) -> bool:
        """Write a new hash, end the other sessions and enqueue an e-mail to the owner.

        One transaction. Returns False, and changes nothing, if the account has
        changed. Raises ResponseExists; TokenInvalid if the session to keep has ended.
        """


class EmailOutbox(Protocol):
    """Enqueues e-mails."""

    async def add(
        self, now: datetime, *entries: NewEntry, audited: bool = False
    ) -> None:
        """Write outbox entries that belong to no other change.

        They are the change of an `audited` call: its event is written with them.
        """
