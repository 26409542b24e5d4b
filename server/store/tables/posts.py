"""Categories and posts."""

from __future__ import annotations

import sqlalchemy as sa

from server.store.tables.base import Moment, metadata

categories = sa.Table(
    "categories",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    # byte order: the same on every server
    sa.Column("slug", sa.String(100, collation="C"), nullable=False),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("created_at", Moment, nullable=False),
    sa.Column("updated_at", Moment, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False, server_default="1"),
    sa.UniqueConstraint("slug"),
    sa.Index("idx_categories_created_at", "created_at", "id"),
)

# `state` is draft (1), published (2) or soft-deleted (3). A list selects single states,
# so that each index is read in its own order. A trigger sets `published_at` when a post
# is first published.
posts = sa.Table(
    "posts",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("user_id", sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    sa.Column("category_id", sa.ForeignKey("categories.id", ondelete="RESTRICT")),
    sa.Column("title", sa.String(200), nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("state", sa.SmallInteger, nullable=False),
    sa.Column("created_at", Moment, nullable=False),
    sa.Column("updated_at", Moment, nullable=False),
    sa.Column("published_at", Moment),
    sa.Column("deleted_at", Moment),
    sa.Column("version", sa.BigInteger, nullable=False, server_default="1"),
    # including the author, so that counting reads the index only
    sa.Index(
        "idx_posts_created_at",
        "state",
        "created_at",
        "id",
        postgresql_include=["user_id"],
    ),
    # posts to delete, in order; few
    sa.Index(
        "idx_posts_deleted_at",
        "deleted_at",
        postgresql_where=sa.text("deleted_at is not null"),
    ),
    sa.Index("idx_posts_user_id", "user_id", "state", "created_at", "id"),
    sa.Index(
        "idx_posts_category_id",
        "category_id",
        "state",
        "created_at",
        "id",
        postgresql_include=["user_id"],
    ),
    sa.Index(
        "idx_posts_published_at",
        "state",
        "published_at",
        "id",
        postgresql_include=["user_id"],
    ),
    sa.Index(
        "idx_posts_user_id_published_at", "user_id", "state", "published_at", "id"
    ),
    sa.Index(
        "idx_posts_category_id_published_at",
        "category_id",
        "state",
        "published_at",
        "id",
        postgresql_include=["user_id"],
    ),
)
