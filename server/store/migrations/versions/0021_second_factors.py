"""Second factors, recovery codes, identities, and the challenges of log-ins."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA, JSONB, UUID

from server.store.migrations.steps import create_index

revision = "0021"
down_revision = "0020"

_Moment = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Add the columns of sessions, and the tables.

    Sessions of the previous release were opened with a password.
    """
    op.add_column(
        "sessions", sa.Column("authenticated_at", _Moment), if_not_exists=True
    )
    op.add_column(
        "sessions",
        sa.Column("amr", ARRAY(sa.Text), nullable=False, server_default="{pwd}"),
        if_not_exists=True,
    )
    op.add_column(
        "sessions",
        sa.Column("actor_id", sa.BigInteger, nullable=False, server_default="0"),
        if_not_exists=True,
    )
    _create_challenges()
    _create_factors()
    _create_recovery_codes()
    _create_identities()
    create_index(
        "idx_sessions_actor_id",
        "sessions",
        ["actor_id"],
        postgresql_where=sa.text("actor_id > 0"),
    )


def _create_challenges() -> None:
    op.create_table(
        "challenges",
        sa.Column("id", UUID(as_uuid=True), nullable=False),
        sa.Column("kind", sa.SmallInteger, nullable=False),
        sa.Column("user_id", sa.BigInteger),
        sa.Column("secret_hash", BYTEA, nullable=False),
        sa.Column("data", JSONB, nullable=False, server_default="{}"),
        sa.Column("version", sa.BigInteger),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("attempts", sa.SmallInteger, nullable=False, server_default="0"),
        sa.Column("created_at", _Moment, nullable=False),
        sa.Column("expires_at", _Moment, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_challenges"),
        _owner("challenges"),
        if_not_exists=True,
    )
    _create_index("idx_challenges_user_id", "challenges", "user_id")
    _create_index("idx_challenges_expires_at", "challenges", "expires_at")


def _create_factors() -> None:
    op.create_table(
        "factors",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("user_id", sa.BigInteger, nullable=False),
        sa.Column("type", sa.SmallInteger, nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("secret", BYTEA),
        sa.Column("last_step", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("credential_id", BYTEA),
        sa.Column("public_key", BYTEA),
        sa.Column("sign_count", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column(
            "is_backed_up", sa.Boolean, nullable=False, server_default=sa.false()
        ),
        sa.Column("transports", ARRAY(sa.Text), nullable=False, server_default="{}"),
        sa.Column("created_at", _Moment, nullable=False),
        sa.Column("confirmed_at", _Moment),
        sa.Column("last_used_at", _Moment),
        sa.PrimaryKeyConstraint("id", name="pk_factors"),
        sa.UniqueConstraint("credential_id", name="uq_factors_credential_id"),
        _owner("factors"),
        if_not_exists=True,
    )
    _create_index("idx_factors_user_id", "factors", "user_id")
    op.create_index(
        "idx_factors_unconfirmed",
        "factors",
        ["created_at"],
        postgresql_where=sa.text("confirmed_at is null"),
        if_not_exists=True,
    )


def _create_recovery_codes() -> None:
    op.create_table(
        "recovery_codes",
        sa.Column("user_id", sa.BigInteger, nullable=False),
        sa.Column("code_hash", BYTEA, nullable=False),
        sa.Column("used_at", _Moment),
        sa.PrimaryKeyConstraint("user_id", "code_hash", name="pk_recovery_codes"),
        _owner("recovery_codes"),
        if_not_exists=True,
    )


def _create_identities() -> None:
    op.create_table(
        "identities",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("user_id", sa.BigInteger, nullable=False),
        sa.Column("issuer", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("email", sa.String(255), nullable=False, server_default=""),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("created_at", _Moment, nullable=False),
        sa.Column("last_used_at", _Moment),
        sa.PrimaryKeyConstraint("id", name="pk_identities"),
        sa.UniqueConstraint("issuer", "subject", name="uq_identities_issuer_subject"),
        _owner("identities"),
        if_not_exists=True,
    )
    _create_index("idx_identities_user_id", "identities", "user_id")


def _owner(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["user_id"], ["users.id"], name=f"fk_{table}_user_id", ondelete="CASCADE"
    )


def _create_index(name: str, table: str, column: str) -> None:
    """Create an index of a new table, which is empty."""
    op.create_index(name, table, [column], if_not_exists=True)
