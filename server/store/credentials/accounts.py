"""What a log-in reads and writes of accounts in Postgres."""

from __future__ import annotations

import sqlalchemy as sa

from server.domain.accounts.users import Role
from server.domain.auth import Account
from server.store.accounts.user_reads import NOT_DELETED
from server.store.connect import Database
from server.store.mapping import entity_of
from server.store.tables import users

_ACCOUNT = (
    users.c.id.label("user_id"),
    users.c.username,
    users.c.hashed_password.label("password_hash"),
    users.c.role,
    users.c.is_active,
    users.c.email,
    users.c.version,
)


class PostgresAccounts:
    """Finds accounts by what people type."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def account(self, identifier: str) -> Account | None:
        """Give the account with this folded username or e-mail address."""
        column = users.c.email if "@" in identifier else users.c.username_folded
        return await self._account(column == identifier)

    async def account_by_id(self, user_id: int) -> Account | None:
        """Give the account with this id."""
        return await self._account(users.c.id == user_id)

    async def _account(self, condition: sa.ColumnElement[bool]) -> Account | None:
        query = sa.select(*_ACCOUNT).where(condition, NOT_DELETED)
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            return None
        return entity_of(Account, row, role=Role(row.role))

    async def replace_hash(self, user_id: int, old: str, new: str) -> None:
        """Put a better hash of the same password in place of the old one."""
        statement = (
            sa.update(users)
            .where(users.c.id == user_id, users.c.hashed_password == old)
            .values(hashed_password=new)
        )
        async with self._database.transaction() as connection:
            await connection.execute(statement)
