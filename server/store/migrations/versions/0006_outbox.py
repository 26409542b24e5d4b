"""The outbox, and the single-use tokens of its mails."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from server.store.migrations.steps import create_index

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Create the tables, and indexes for erasing a user."""
    op.add_column(
        "request_answers",
        sa.Column(
            "about",
            postgresql.ARRAY(sa.BigInteger()),
            server_default="{}",
            nullable=False,
        ),
        if_not_exists=True,
    )
    _index_users()
    # last: a transaction that commits as a whole
    _outbox()
    _notify_of_entries()
    _mailed_tokens()


def _index_users() -> None:
    """Index users in existing tables, so that erasing one of them is fast."""
    # the users in a response: erasing one of them deletes it
    create_index(
        "idx_request_answers_about",
        "request_answers",
        ["about"],
        postgresql_using="gin",
    )
    create_index("idx_audit_events_actor", "audit_events", ["actor"])
    create_index("idx_sessions_expires_at", "sessions", ["expires_at"])
    create_index(
        "idx_sessions_ended_at",
        "sessions",
        ["ended_at"],
        postgresql_where=sa.text("ended_at is not null"),
    )


def _outbox() -> None:
    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("user_id", sa.BigInteger()),
        sa.Column("address", sa.String(255)),
        sa.Column("payload", postgresql.JSONB(), server_default="{}", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("state", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column(
            "next_attempt_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("'-infinity'"),
            nullable=False,
        ),
        sa.Column("delivered_at", sa.DateTime(timezone=True)),
        sa.Column("last_error", sa.Text()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
    )
    op.create_index(
        "idx_outbox_next_attempt_at",
        "outbox",
        ["next_attempt_at", "id"],
        postgresql_where=sa.text("state = 0"),
    )
    op.create_index("idx_outbox_user_id", "outbox", ["user_id"])
    op.create_index(
        "idx_outbox_address",
        "outbox",
        ["address"],
        postgresql_where=sa.text("address is not null"),
    )
    op.create_index("idx_outbox_delivered_at", "outbox", ["delivered_at"])


def _notify_of_entries() -> None:
    """Notify channel `outbox` of new entries when they commit."""
    op.execute(
        """
        create function tell_outbox_written() returns trigger language plpgsql as $$
        begin
          perform pg_notify('outbox', '');
          return null;
        end $$
        """
    )
    op.execute(
        "create trigger outbox_written after insert on outbox "
        "for each statement execute function tell_outbox_written()"
    )


def _mailed_tokens() -> None:
    op.create_table(
        "mailed_tokens",
        sa.Column("digest", postgresql.BYTEA(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column("address", sa.String(255), nullable=False),
        sa.Column("outbox_id", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_mailed_tokens")),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["users.id"],
            name=op.f("fk_mailed_tokens_user_id"),
            ondelete="CASCADE",
        ),
    )
    op.create_index("idx_mailed_tokens_user_id", "mailed_tokens", ["user_id"])
    op.create_index("idx_mailed_tokens_expires_at", "mailed_tokens", ["expires_at"])
