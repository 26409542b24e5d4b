"""Sessions, tokens and keys."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA, UUID

from server.store.tables.base import Moment, metadata

_WRITTEN_BY = sa.text(
    "coalesce(nullif(current_setting('academy.write_epoch', true), '')::bigint,"
    " pg_current_xact_id()::text::bigint)"
)

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("id", UUID(as_uuid=True), primary_key=True),
    sa.Column("user_id", sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    sa.Column("token_hash", BYTEA, nullable=False),
    sa.Column("parent_hash", BYTEA, nullable=False),
    sa.Column("nonce", BYTEA, nullable=False),
    sa.Column("created_at", Moment, nullable=False),
    sa.Column("last_used_at", Moment, nullable=False),
    sa.Column("expires_at", Moment, nullable=False),
    sa.Column("address", sa.Text, nullable=False),
    sa.Column("device", sa.Text, nullable=False),
    sa.Column("ended_at", Moment),
    sa.Column("authenticated_at", Moment),  # null: at the log-in
    sa.Column("amr", ARRAY(sa.Text), nullable=False, server_default="{pwd}"),
    # the admin who acts as the user, or 0; no foreign key, which would be the user's
    sa.Column("actor_id", sa.BigInteger, nullable=False, server_default="0"),
    sa.Index("idx_sessions_user_id", "user_id"),
    sa.Index("idx_sessions_expires_at", "expires_at"),
    sa.Index(
        "idx_sessions_actor_id",
        "actor_id",
        postgresql_where=sa.text("actor_id > 0"),
    ),
    sa.Index(
        "idx_sessions_ended_at",
        "ended_at",
        postgresql_where=sa.text("ended_at is not null"),
    ),
)

# Polled by every process. `written_by` is the number of the transaction that wrote the
# row, see pool/settled_changes.py: rows are read from the oldest transaction that was
# open at the last poll, so a late commit is never skipped.
revocations = sa.Table(
    "revocations",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("session_id", UUID(as_uuid=True), nullable=False),
    sa.Column("ended_at", Moment, nullable=False),
    sa.Column("written_by", sa.BigInteger, nullable=False, server_default=_WRITTEN_BY),
    sa.Index("idx_revocations_written_by", "written_by"),
    sa.Index("idx_revocations_ended_at", "ended_at"),
)

# The epochs in which transactions may still write; see pool/settled_changes.py.
write_epochs = sa.Table(
    "write_epochs",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
)

signing_keys = sa.Table(
    "signing_keys",
    metadata,
    sa.Column("kid", sa.String(32), primary_key=True),
    sa.Column("state", sa.SmallInteger, nullable=False),
    sa.Column("encrypted_private_key", BYTEA, nullable=False),
    sa.Column("created_at", Moment, nullable=False),
    # one active key: two processes that start together cannot both create one
    sa.Index(
        "idx_signing_keys_active",
        "state",
        unique=True,
        postgresql_where=sa.text("state = 2"),
    ),
)

service_keys = sa.Table(
    "service_keys",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("digest", BYTEA, nullable=False),
    sa.Column("private_fields", sa.Boolean, nullable=False),
    sa.Column("created_at", Moment, nullable=False),
    sa.Column("expires_at", Moment),
    sa.Column("last_used_at", Moment),
    sa.Column("revoked_at", Moment),
    sa.UniqueConstraint("digest"),
)

# Single-use tokens, stored hashed. `address` is the e-mail address that the token
# verifies; it may differ from the account's.
mailed_tokens = sa.Table(
    "mailed_tokens",
    metadata,
    sa.Column("digest", BYTEA, primary_key=True),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("user_id", sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    sa.Column("address", sa.String(255), nullable=False),
    sa.Column("outbox_id", sa.BigInteger, nullable=False),
    sa.Column("created_at", Moment, nullable=False),
    sa.Column("expires_at", Moment, nullable=False),
    sa.Column("used_at", Moment),
    sa.Index("idx_mailed_tokens_user_id", "user_id"),
    sa.Index("idx_mailed_tokens_expires_at", "expires_at"),
)
