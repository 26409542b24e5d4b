"""Soft deletion of accounts, and indexes for lists of users."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from server.store.migrations.steps import create_index

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the time of deletion; an older release still shows deleted accounts."""
    op.add_column(
        "users",
        sa.Column("deleted_at", sa.DateTime(timezone=True)),
        if_not_exists=True,
    )
    create_index(
        "idx_users_deleted_at",
        "users",
        ["deleted_at"],
        postgresql_where=sa.text("deleted_at is not null"),
    )
    create_index("idx_users_role", "users", ["role", "id"])
    create_index(
        "idx_users_is_active",
        "users",
        ["id"],
        postgresql_where=sa.text("not is_active"),
    )
