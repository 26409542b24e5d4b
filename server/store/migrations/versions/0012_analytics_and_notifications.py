"""Counts of posts and followers, and notifications of members."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from server.store.migrations.steps import run_in_batches

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Create the tables; every existing account is counted."""
    _analytics()
    _notifications()
    run_in_batches(
        "insert into user_analytics (user_id) select id from users"
        " where id > :after and id <= :until on conflict do nothing",
        "users",
    )


def _analytics() -> None:
    op.create_table(
        "user_analytics",
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column("posts", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("followers", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True)),
        sa.Column("counted_at", sa.DateTime(timezone=True)),
        sa.Column("stale", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_user_analytics")),
        _reference("user_analytics", "user_id", "users"),
        if_not_exists=True,
    )
    op.create_index(
        "idx_user_analytics_stale",
        "user_analytics",
        ["user_id"],
        postgresql_where=sa.text("stale"),
        if_not_exists=True,
    )


def _notifications() -> None:
    op.create_table(
        "notifications",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column("actor_id", sa.BigInteger(), nullable=False),
        sa.Column("post_id", sa.BigInteger()),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("told_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_notifications")),
        _reference("notifications", "user_id", "users"),
        _reference("notifications", "actor_id", "users"),
        _reference("notifications", "post_id", "posts"),
        if_not_exists=True,
    )
    for name, columns, unique, where in (
        ("user_id", ["user_id", "id"], False, None),
        ("actor_id", ["actor_id"], False, None),
        ("post_id", ["post_id", "user_id"], True, None),
        ("follower", ["user_id", "actor_id"], True, sa.text("post_id is null")),
        ("created_at", ["created_at"], False, None),
        ("told_at", ["created_at"], False, sa.text("told_at is null")),
    ):
        op.create_index(
            f"idx_notifications_{name}",
            "notifications",
            columns,
            unique=unique,
            postgresql_where=where,
            if_not_exists=True,
        )


def _reference(table: str, column: str, other: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        [column],
        [f"{other}.id"],
        name=op.f(f"fk_{table}_{column}"),
        ondelete="CASCADE",
    )
