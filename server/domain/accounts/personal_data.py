"""The personal data of one user: exporting it and erasing it (GDPR art. 15, 17, 20)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from server.domain.auth.authentication import Authentication
from server.domain.callers import Caller
from server.domain.errors import InvalidFields, UserNotFound, Violation
from server.domain.limits import AccountLimit


@dataclass(frozen=True, slots=True)
class ExportBatch:
    """Some rows of one section; an empty section has one batch without rows."""

    section: str
    rows: Sequence[Mapping[str, object]]


class PersonalDataStore(Protocol):
    """Finds and erases everything stored about a user."""

    async def erase(self, user_id: int, now: datetime) -> None:
        """Erase a user and end their sessions. Raises UserNotFound, LastAdmin."""

    async def exists(self, user_id: int) -> bool:
        """Return whether the account exists; a soft-deleted one does."""

    def export(self, user_id: int) -> AsyncGenerator[ExportBatch, None]:
        """Yield everything stored about a user, without secrets, section by section."""


@dataclass(frozen=True, slots=True)
class PersonalData:
    """The rules of exporting and erasing personal data."""

    store: PersonalDataStore
    authentication: Authentication

    async def erase(
        self,
        caller: Caller,
        user_id: int,
        password: str,
        limits: Sequence[AccountLimit],
    ) -> None:
        """Erase a user. Callers who erase themselves must prove it by their password.

        Raises InvalidFields without one, InvalidCredentials, Overloaded, UserNotFound,
        LastAdmin.
        """
        if caller.user_id == user_id:
            if not password:
                raise InvalidFields([_PASSWORD_REQUIRED])
            rules = self.authentication
            account = await rules.accounts.account_by_id(user_id)
            await rules.verified(account, caller.subject, password, limits)
        await self.store.erase(user_id, self.authentication.clock())

    async def export(self, user_id: int) -> AsyncGenerator[ExportBatch, None]:
        """Yield everything stored about a user.

        Raises UserNotFound before the first batch if there is no such account, and
        after the last one if it was erased meanwhile: the export is incomplete then.
        """
        await self._check_exists(user_id)
        async with aclosing(self.store.export(user_id)) as batches:
            async for batch in batches:
                yield batch
        await self._check_exists(user_id)

    async def _check_exists(self, user_id: int) -> None:
        if not await self.store.exists(user_id):
            raise UserNotFound(user_id)


_PASSWORD_REQUIRED = Violation(
    "currentPassword", "is required to erase your own account", "required"
)
