"""Accounts that changed lately, or are inactive, are found without reading all."""

from __future__ import annotations

import sqlalchemy as sa

from server.store.migrations.steps import create_index, drop_index

revision = "0018"
down_revision = "0016"


def upgrade() -> None:
    """Add the indexes; one replaces an index that no statement could use.

    Lists select by `is_active IS false`. The planner cannot prove that this implies the
    condition `not is_active` of a partial index. Deleted accounts are in no list;
    without them, rows are counted in the index.
    """
    create_index(
        "idx_users_updated_at",
        "users",
        ["updated_at"],
        postgresql_where=sa.text("version > 1"),
    )
    create_index(
        "idx_users_inactive",
        "users",
        ["id"],
        postgresql_where=sa.text("is_active is false and deleted_at is null"),
    )
    drop_index("idx_users_is_active", "users")
