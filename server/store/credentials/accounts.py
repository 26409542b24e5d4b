"""Accounts in Postgres, as far as a log-in reads and writes them."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from server.domain.accounts.users import Role
from server.domain.credentials.stores import Account
from server.domain.factors.methods import FactorType
from server.store.accounts.user_reads import NOT_DELETED
from server.store.connections.connect import Database
from server.store.tables import factors, users

_ACCOUNT = (
    users.c.id.label("user_id"),
    users.c.username,
    users.c.hashed_password.label("password_hash"),
    users.c.role,
    users.c.is_active,
    users.c.email,
    users.c.version,
    sa.func.array(
        sa.select(factors.c.type)
        .where(factors.c.user_id == users.c.id, factors.c.confirmed_at.is_not(None))
        .distinct()
        .order_by(factors.c.type)
        .scalar_subquery(),
        type_=ARRAY(sa.SmallInteger),
    ).label("factors"),
)


class PostgresAccounts:
    """Finds accounts by identifier."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def account(self, identifier: str) -> Account | None:
        """Return the account with this normalized username or e-mail address."""
        column = users.c.email if "@" in identifier else users.c.username_folded
        return await self._account(column == identifier)

    async def account_by_id(self, user_id: int) -> Account | None:
        """Return the account with this id."""
        return await self._account(users.c.id == user_id)

    async def _account(self, condition: sa.ColumnElement[bool]) -> Account | None:
        query = sa.select(*_ACCOUNT).where(condition, NOT_DELETED)
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            return None
        types = [FactorType(number) for number in row.factors]
        return Account(**{**row._mapping, "role": Role(row.role), "factors": types})

    async def replace_hash(self, user_id: int, old: str, new: str) -> None:
        """Replace the hash of a password by a better one, unless it has changed."""
        statement = (
            sa.update(users)
            .where(users.c.id == user_id, users.c.hashed_password == old)
            .values(hashed_password=new)
        )
        async with self._database.transaction() as connection:
            await connection.execute(statement)
