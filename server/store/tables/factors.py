"""Second factors, identities at other providers, and log-ins that wait for one."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA, JSONB, UUID

from server.store.tables.base import Moment, metadata

# Everything pending that its client completes once. The client has the secret.
# `version` is the account's: what was begun before a change of the account is void.
challenges = sa.Table(
    "challenges",
    metadata,
    sa.Column("id", UUID(as_uuid=True), primary_key=True),
    sa.Column("kind", sa.SmallInteger, nullable=False),
    sa.Column("user_id", sa.ForeignKey("users.id", ondelete="CASCADE")),
    sa.Column("secret_hash", BYTEA, nullable=False),
    sa.Column("data", JSONB, nullable=False, server_default="{}"),
    sa.Column("version", sa.BigInteger),
    sa.Column("address", sa.Text, nullable=False),
    sa.Column("device", sa.Text, nullable=False),
    sa.Column("attempts", sa.SmallInteger, nullable=False, server_default="0"),
    sa.Column("created_at", Moment, nullable=False),
    sa.Column("expires_at", Moment, nullable=False),
    sa.Index("idx_challenges_user_id", "user_id"),
    sa.Index("idx_challenges_expires_at", "expires_at"),
)

# A factor without `confirmed_at` has no effect. `secret` is that of an authenticator
# app, encrypted; `last_step` the last of its time steps that was used.
factors = sa.Table(
    "factors",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("user_id", sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    sa.Column("type", sa.SmallInteger, nullable=False),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("secret", BYTEA),
    sa.Column("last_step", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("credential_id", BYTEA),
    sa.Column("public_key", BYTEA),
    sa.Column("sign_count", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("is_backed_up", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("transports", ARRAY(sa.Text), nullable=False, server_default="{}"),
    sa.Column("created_at", Moment, nullable=False),
    sa.Column("confirmed_at", Moment),
    sa.Column("last_used_at", Moment),
    sa.UniqueConstraint("credential_id"),
    sa.Index("idx_factors_user_id", "user_id"),
    # factors to delete; few
    sa.Index(
        "idx_factors_unconfirmed",
        "created_at",
        postgresql_where=sa.text("confirmed_at is null"),
    ),
)

recovery_codes = sa.Table(
    "recovery_codes",
    metadata,
    sa.Column(
        "user_id", sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True
    ),
    sa.Column("code_hash", BYTEA, primary_key=True),
    sa.Column("used_at", Moment),
)

# `provider` is the operator's name of the issuer, as far as it is still configured.
identities = sa.Table(
    "identities",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("user_id", sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    sa.Column("issuer", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("email", sa.String(255), nullable=False, server_default=""),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("created_at", Moment, nullable=False),
    sa.Column("last_used_at", Moment),
    sa.UniqueConstraint("issuer", "subject"),
    sa.Index("idx_identities_user_id", "user_id"),
)
