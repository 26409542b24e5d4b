"""Linked identities: the accounts at providers with which a user can log in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from server.domain.callers import Caller
from server.domain.clock import Clock
from server.domain.credentials.stores import Account, AccountStore
from server.domain.errors import StepUpRequired, TokenInvalid
from server.domain.factors.methods import FactorLevel
from server.domain.identities.providers import ExternalIdentity

MAX_IDENTITIES = 20  # of one user


@dataclass(frozen=True, slots=True)
class Identity:
    """A linked identity. `last_used_at` is None if there was no log-in with it."""

    id: int
    provider: str
    issuer: str
    email: str
    created_at: datetime
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True)
class NewAccount:
    """An account without a password, for a first log-in with an identity."""

    email: str
    username: str


class IdentityStore(Protocol):
    """Stores linked identities."""

    async def use(self, identity: ExternalIdentity, now: datetime) -> int:
        """Note a log-in with an identity; return its user, 0 if it is not linked."""

    async def link(
        self,
        identity: ExternalIdentity,
        account: Account,
        caller: Caller,
        now: datetime,
    ) -> None:
        """Link an identity to the caller's account, and inform its owner.

        Raises IdentityTaken, TooManyFactors; TokenInvalid if the caller's session
        has ended or the account has changed since it was read.
        """

    async def create_account(
        self, identity: ExternalIdentity, new: NewAccount, now: datetime
    ) -> int:
        """Write an account with its identity; return its user.

        Raises EmailTaken, UsernameTaken, IdentityTaken.
        """

    async def all_of(self, user_id: int) -> Sequence[Identity]:
        """Return the identities of a user, in the order of their ids."""

    async def unlink(self, user_id: int, identity_id: int, now: datetime) -> None:
        """Delete an identity of a user, and inform them.

        Raises IdentityNotFound, LastWayIn.
        """


@dataclass(frozen=True, slots=True)
class Identities:
    """The rules of linked identities."""

    accounts: AccountStore
    store: IdentityStore
    clock: Clock

    async def list(self, caller: Caller) -> Sequence[Identity]:
        """Return the identities of the caller, in the order of their ids."""
        return await self.store.all_of(caller.user_id)

    async def unlink(self, caller: Caller, identity_id: int) -> None:
        """Delete an identity of the caller.

        Raises IdentityNotFound, LastWayIn, StepUpRequired.
        """
        await authorized_account(self.accounts, caller)
        await self.store.unlink(caller.user_id, identity_id, self.clock())


async def authorized_account(accounts: AccountStore, caller: Caller) -> Account:
    """Return the account of a caller who may change how it is logged in to.

    A log-in that did not use the account's second factor may not. Raises
    StepUpRequired, TokenInvalid.
    """
    account = await accounts.account_by_id(caller.user_id)
    if account is None or not account.is_active:
        raise TokenInvalid("the account is deleted or disabled")
    if account.factors and caller.factor_level < FactorLevel.TWO:
        raise StepUpRequired(second_factor=True)
    return account
