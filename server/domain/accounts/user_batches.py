"""Making many accounts at once, each with an outcome of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from server.domain.accounts.users import NewUser, Role, User, normalize_identifier
from server.domain.clock import Clock
from server.domain.credentials.imported_hashes import hash_violations
from server.domain.credentials.passwords import (
    PasswordHasher,
    PasswordPolicy,
    check_password,
)
from server.domain.errors import AcademyError, InvalidFields
from server.domain.idempotency import IdempotencyRecord


@dataclass(frozen=True, slots=True)
class Row:
    """An account to be made, with a password or the hash of one."""

    email: str
    username: str
    password: str
    password_hash: str
    role: Role


Outcomes = Sequence[User | AcademyError]


class UserBatchStore(Protocol):
    """Writes many accounts."""

    async def add_all(
        self,
        rows: Sequence[NewUser | AcademyError],
        idempotency: IdempotencyRecord[Outcomes] | None = None,
    ) -> Outcomes:
        """Write accounts in one transaction, and the answer that `once` makes of it.

        What is refused already stays so; a taken name or address, in the same batch
        too, refuses its row alone. Raises AnswerExists.
        """


@dataclass(frozen=True, slots=True)
class UserBatches:
    """The rules of making many accounts."""

    store: UserBatchStore
    hasher: PasswordHasher
    policy: PasswordPolicy
    imported_hash_max_cost: int  # times the cost of the service's own hashes
    clock: Clock

    async def create(
        self,
        rows: Sequence[Row | InvalidFields],
        idempotency: IdempotencyRecord[Outcomes] | None = None,
    ) -> Outcomes:
        """Give what became of each row; one that breaks a rule comes as its refusal.

        Raises Overloaded if too many passwords wait to be hashed.
        """
        checked = [self._checked(row) for row in rows]
        passwords = [
            row.password
            for row in checked
            if isinstance(row, Row) and not row.password_hash
        ]
        hashes = iter(await self.hasher.hash_all(passwords))
        now = self.clock()
        new = [
            _new(row, row.password_hash or next(hashes), now)
            if isinstance(row, Row)
            else row
            for row in checked
        ]
        return await self.store.add_all(new, idempotency)

    def _checked(self, row: Row | InvalidFields) -> Row | InvalidFields:
        if isinstance(row, InvalidFields):
            return row
        if row.password_hash:
            violations = hash_violations(
                row.password_hash, "passwordHash", self.imported_hash_max_cost
            )
            return InvalidFields(violations) if violations else row
        try:
            check_password(row.password, row.username, self.policy, email=row.email)
        except InvalidFields as refusal:
            return refusal
        return row


def _new(row: Row, hashed: str, now: datetime) -> NewUser:
    return NewUser(normalize_identifier(row.email), row.username, hashed, row.role, now)
