"""What is held about one person: giving it to them, erasing it (GDPR art. 15, 17)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from server.domain.auth import Authentication
from server.domain.callers import Caller
from server.domain.errors import InvalidFields, UserNotFound, Violation
from server.domain.limits import AccountLimit

# By the name of what keeps it: rows, each by the names of its columns.
Document = Mapping[str, list[dict[str, object]]]


class PersonalDataStore(Protocol):
    """Knows where something about a user is held."""

    async def erase(self, user_id: int, now: datetime) -> None:
        """Erase a user and end their sessions. Raises UserNotFound, LastAdmin."""

    async def held(self, user_id: int) -> Document:
        """Give what is held about a user, without secrets; no account: no rows."""


@dataclass(frozen=True, slots=True)
class PersonalData:
    """The rules of giving and erasing what is held about one user."""

    store: PersonalDataStore
    authentication: Authentication

    async def erase(
        self,
        caller: Caller,
        user_id: int,
        password: str,
        limits: Sequence[AccountLimit],
    ) -> None:
        """Erase a user; who erases themself proves by their password that it is they.

        Raises InvalidFields without one, InvalidCredentials, Overloaded, UserNotFound,
        LastAdmin.
        """
        if caller.user_id == user_id:
            if not password:
                raise InvalidFields([_NO_PASSWORD])
            rules = self.authentication
            account = await rules.accounts.account_by_id(user_id)
            await rules.verified(account, caller.subject, password, limits)
        await self.store.erase(user_id, self.authentication.clock())

    async def export(self, user_id: int) -> Document:
        """Give everything that is held about a user. Raises UserNotFound."""
        document = await self.store.held(user_id)
        if not document["users"]:
            raise UserNotFound(user_id)
        return document


_NO_PASSWORD = Violation(
    "currentPassword", "must be given by who erases themself", "required"
)
