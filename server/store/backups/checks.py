"""Checks of a restored database: it has everything, and it can be used."""

from __future__ import annotations

import sqlalchemy as sa
from cryptography.fernet import InvalidToken
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.credentials.secret_key import SecretKey
from server.store.backups.archive import Manifest
from server.store.backups.contents import count_rows, revision_of
from server.store.backups.errors import BackupError
from server.store.credentials.signing_keys import CIPHER_PURPOSE, UnreadableKeys
from server.store.tables import signing_keys

# Names of constraints, indexes and triggers that do not guard the data.
_INVALID = sa.text(
    "select conname from pg_constraint where not convalidated"
    " and connamespace = current_schema()::regnamespace"
    " union all"
    " select relname from pg_index join pg_class on oid = indexrelid"
    " where not (indisvalid and indisready)"
    " and relnamespace = current_schema()::regnamespace"
    " union all"
    " select tgname from pg_trigger join pg_class on pg_class.oid = tgrelid"
    " where tgenabled = 'D' and relnamespace = current_schema()::regnamespace"
)


async def check_restored(connection: AsyncConnection, manifest: Manifest) -> None:
    """Raise BackupError if the database is not what was backed up."""
    revision = await revision_of(connection)
    if revision != manifest.revision:
        raise BackupError(
            f"the restored schema has revision {revision or 'none'}, the backup "
            f"{manifest.revision}"
        )
    rows = await count_rows(connection, manifest.schema)
    for table in sorted({*rows, *manifest.rows}):
        restored, expected = rows.get(table), manifest.rows.get(table)
        if restored != expected:
            raise BackupError(
                f"the restored table {table} has {restored} rows, the backup {expected}"
            )


async def check_content(connection: AsyncConnection, secret: SecretKey) -> None:
    """Raise BackupError if a constraint, an index or a trigger is invalid.

    Raises UnreadableKeys if a signing key cannot be decrypted.
    """
    names = (await connection.execute(_INVALID)).scalars().all()
    if names:
        raise BackupError(f"the database has invalid parts: {', '.join(names)}")
    cipher = secret.cipher(CIPHER_PURPOSE)
    keys = await connection.execute(sa.select(signing_keys.c.encrypted_private_key))
    try:
        for key in keys.scalars():
            cipher.decrypt(key)
    except InvalidToken as error:
        raise UnreadableKeys from error
