"""Second factors of an account: adding, listing and removing them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from server.domain.accounts.users import Role
from server.domain.callers import Caller
from server.domain.clock import Clock
from server.domain.credentials.stores import Account, AccountStore
from server.domain.errors import (
    AccessDenied,
    FactorCodeInvalid,
    FactorNotFound,
    FactorRequired,
    StepUpRequired,
    TokenInvalid,
)
from server.domain.factors.methods import FactorLevel, FactorType
from server.domain.factors.recovery_codes import create_codes, digest
from server.domain.factors.totp import Totp, TotpSecret

MAX_FACTORS = 10
DEFAULT_TOTP_NAME = "Authenticator app"


@dataclass(frozen=True, slots=True)
class Factor:
    """A confirmed factor, without its secrets."""

    id: int
    type: FactorType
    name: str
    confirmed_at: datetime
    last_used_at: datetime | None
    is_backed_up: bool = False


@dataclass(frozen=True, slots=True)
class TotpFactor:
    """The encrypted secret of an authenticator app, and the last step that was used."""

    id: int
    secret: bytes = field(repr=False)
    last_step: int


@dataclass(frozen=True, slots=True)
class FactorList:
    """The factors of a user, and how many recovery codes are unused."""

    factors: Sequence[Factor]
    recovery_codes_left: int


@dataclass(frozen=True, slots=True)
class NewFactor:
    """An authenticator app that is to be confirmed."""

    id: int
    secret: TotpSecret


@dataclass(frozen=True, slots=True)
class Confirmation:
    """A confirmed factor; with the first one of an account, its recovery codes."""

    factor: Factor
    recovery_codes: Sequence[str] = field(default=(), repr=False)


class FactorStore(Protocol):
    """Stores factors and recovery codes. Every change is audited."""

    async def add_totp(
        self, user_id: int, name: str, secret: bytes, now: datetime
    ) -> int:
        """Write a factor without effect in place of an earlier one; return its id.

        Raises TooManyFactors.
        """

    async def unconfirmed_totp(self, user_id: int, factor_id: int) -> TotpFactor | None:
        """Return an authenticator app that is not confirmed."""

    async def confirm_totp(
        self,
        caller: Caller,
        factor_id: int,
        step: int,
        code_digests: Sequence[bytes],
        now: datetime,
    ) -> tuple[Factor, bool]:
        """Confirm an authenticator app; return it, and whether it is the first factor.

        The first one writes the recovery codes. The caller's session has two factors
        from now on, and the other sessions end. Raises FactorNotFound, TokenInvalid.
        """

    async def all_of(self, user_id: int) -> FactorList:
        """Return the confirmed factors, in the order of their ids."""

    async def delete(self, factor_id: int, owner_id: int, now: datetime) -> None:
        """Delete a factor, of this user or, with 0, of any.

        With the last factor, the recovery codes go, too. Raises FactorNotFound,
        LastWayIn.
        """

    async def replace_codes(
        self, user_id: int, code_digests: Sequence[bytes], now: datetime
    ) -> None:
        """Replace the recovery codes. Raises FactorRequired without a factor."""


@dataclass(frozen=True, slots=True)
class Factors:
    """The rules of factors. `required_roles` may not be without one."""

    accounts: AccountStore
    store: FactorStore
    totp: Totp
    clock: Clock
    required_roles: Collection[Role] = ()

    async def create_totp(self, caller: Caller, name: str) -> NewFactor:
        """Return a new secret for an authenticator app; it has no effect yet.

        Raises TooManyFactors, StepUpRequired.
        """
        account = await self.authorized(caller)
        secret = self.totp.create(account.username)
        factor_id = await self.store.add_totp(
            account.user_id, name or DEFAULT_TOTP_NAME, secret.encrypted, self.clock()
        )
        return NewFactor(factor_id, secret)

    async def confirm_totp(
        self, caller: Caller, factor_id: int, code: str
    ) -> Confirmation:
        """Confirm an authenticator app with its present code.

        Raises FactorNotFound, FactorCodeInvalid, StepUpRequired.
        """
        await self.authorized(caller)
        pending = await self.store.unconfirmed_totp(caller.user_id, factor_id)
        if pending is None:
            raise FactorNotFound(factor_id)
        step = self.totp.matching_step(pending.secret, code, pending.last_step)
        if step is None:
            raise FactorCodeInvalid
        codes, digests = self.new_codes(caller.user_id)
        factor, is_first = await self.store.confirm_totp(
            caller, factor_id, step, digests, self.clock()
        )
        return Confirmation(factor, codes if is_first else ())

    async def list(self, caller: Caller, user_id: int) -> FactorList:
        """Return the factors of the caller, or for admins those of any user.

        Raises AccessDenied.
        """
        owner_id = user_id or caller.user_id
        if not caller.sees_all_of(owner_id):
            raise AccessDenied("only admins may list the factors of other users")
        return await self.store.all_of(owner_id)

    async def delete(self, caller: Caller, factor_id: int) -> None:
        """Delete a factor of the caller, or for admins of any user.

        Raises FactorNotFound, also for another user's factor: its existence is not
        revealed. Raises LastWayIn, FactorRequired, StepUpRequired.
        """
        await self.authorized(caller)
        if caller.role in self.required_roles:
            await self._check_not_last(caller, factor_id)
        owner_id = 0 if caller.is_admin else caller.user_id
        await self.store.delete(factor_id, owner_id, self.clock())

    async def _check_not_last(self, caller: Caller, factor_id: int) -> None:
        """Raise FactorRequired for the last factor of a caller who needs one."""
        listed = await self.store.all_of(caller.user_id)
        if [factor.id for factor in listed.factors] == [factor_id]:
            raise FactorRequired(
                "your role needs a second factor: add another one before you delete "
                "this one"
            )

    async def regenerate_codes(self, caller: Caller) -> Sequence[str]:
        """Return new recovery codes; the previous ones are no longer valid.

        Raises FactorRequired, StepUpRequired.
        """
        await self.authorized(caller)
        codes, digests = self.new_codes(caller.user_id)
        await self.store.replace_codes(caller.user_id, digests, self.clock())
        return codes

    def new_codes(self, user_id: int) -> tuple[Sequence[str], Sequence[bytes]]:
        """Return new recovery codes, and what is stored of them."""
        codes = create_codes()
        return codes, [digest(user_id, code) for code in codes]

    async def authorized(self, caller: Caller) -> Account:
        """Return the account of a caller who may change its factors.

        A session that was opened before the account had a factor may not: it proves
        the password only. Raises StepUpRequired, TokenInvalid.
        """
        account = await self.accounts.account_by_id(caller.user_id)
        if account is None:
            raise TokenInvalid("the account is deleted")
        if account.factors and caller.factor_level < FactorLevel.TWO:
            raise StepUpRequired(second_factor=True)
        return account
