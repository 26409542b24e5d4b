"""Creating many accounts in one call, each with its own outcome."""

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
class BatchRow:
    """An account to create, with either a password or a password hash."""

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
        """Write accounts and the idempotent response in one transaction.

        Rows that are errors already stay errors. A username or e-mail address that is
        taken, also by an earlier row, fails its own row only. Raises ResponseExists.
        """


@dataclass(frozen=True, slots=True)
class UserBatches:
    """The rules of creating many accounts."""

    store: UserBatchStore
    hasher: PasswordHasher
    policy: PasswordPolicy
    imported_hash_max_cost: int  # times the cost of the service's own hashes
    clock: Clock

    async def create(
        self,
        rows: Sequence[BatchRow | InvalidFields],
        idempotency: IdempotencyRecord[Outcomes] | None = None,
    ) -> Outcomes:
        """Return the outcome of each row; for an invalid row it is the error.

        Raises Overloaded if too many passwords wait to be hashed.
        """
        checked = [self._checked(row) for row in rows]
        passwords = [
            row.password
            for row in checked
            if isinstance(row, BatchRow) and not row.password_hash
        ]
        hashes = iter(await self.hasher.hash_all(passwords))
        now = self.clock()
        new_users = [
            _new_user(row, row.password_hash or next(hashes), now)
            if isinstance(row, BatchRow)
            else row
            for row in checked
        ]
        return await self.store.add_all(new_users, idempotency)

    def _checked(self, row: BatchRow | InvalidFields) -> BatchRow | InvalidFields:
        if isinstance(row, InvalidFields):
            return row
        if row.password_hash:
            violations = hash_violations(
                row.password_hash, "passwordHash", self.imported_hash_max_cost
            )
            return InvalidFields(violations) if violations else row
        try:
            check_password(row.password, row.username, self.policy, email=row.email)
        except InvalidFields as error:
            return error
        return row


def _new_user(row: BatchRow, password_hash: str, now: datetime) -> NewUser:
    email = normalize_identifier(row.email)
    return NewUser(email, row.username, password_hash, row.role, now)
