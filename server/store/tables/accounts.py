"""Accounts."""

from __future__ import annotations

import sqlalchemy as sa

from server.store.tables.base import Moment, metadata

users = sa.Table(
    "users",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("email", sa.String(255), nullable=False),
    sa.Column("username", sa.String(50), nullable=False),
    # byte order: the same on every server, and LIKE 'prefix%' can use the index
    sa.Column("username_folded", sa.String(50, collation="C"), nullable=False),
    sa.Column("hashed_password", sa.String(255), nullable=False),
    sa.Column("role", sa.SmallInteger, nullable=False),
    sa.Column("is_active", sa.Boolean, nullable=False, server_default=sa.true()),
    sa.Column("email_verified", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("created_at", Moment, nullable=False),
    sa.Column("updated_at", Moment, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False, server_default="1"),
    sa.Column("deleted_at", Moment),
    sa.UniqueConstraint("email"),
    sa.UniqueConstraint("username_folded"),
    sa.Index("idx_users_created_at", "created_at", "id"),
    # accounts to erase, in order; few
    sa.Index(
        "idx_users_deleted_at",
        "deleted_at",
        postgresql_where=sa.text("deleted_at is not null"),
    ),
    sa.Index("idx_users_role", "role", "id"),
    # the condition is that of lists: NOT is_active would not be used
    sa.Index(
        "idx_users_inactive",
        "id",
        postgresql_where=sa.text("is_active is false and deleted_at is null"),
    ),
    # accounts that changed lately, which each process reads when it starts
    sa.Index(
        "idx_users_updated_at", "updated_at", postgresql_where=sa.text("version > 1")
    ),
)

# Erasures that are not complete: the last audit events whose address is cleared, of
# those about the account and of those by it. It has no foreign key: it outlives it.
erasures = sa.Table(
    "erasures",
    metadata,
    sa.Column("account_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("begun_at", Moment, nullable=False),
    sa.Column("last_event", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("last_actor_event", sa.BigInteger, nullable=False, server_default="0"),
)
