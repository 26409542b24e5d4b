"""Profiles, settings, follows and notifications of members."""

from __future__ import annotations

import sqlalchemy as sa

from server.store.tables.base import Moment, metadata

user_profiles = sa.Table(
    "user_profiles",
    metadata,
    sa.Column(
        "user_id", sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True
    ),
    sa.Column("display_name", sa.String(100), nullable=False),
    sa.Column("bio", sa.Text, nullable=False),
    sa.Column("avatar_url", sa.Text, nullable=False),
    sa.Column("locale", sa.Text, nullable=False),
    sa.Column("time_zone", sa.Text, nullable=False),
    sa.Column("created_at", Moment, nullable=False),
    sa.Column("updated_at", Moment, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False, server_default="1"),
)

user_settings = sa.Table(
    "user_settings",
    metadata,
    sa.Column(
        "user_id", sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True
    ),
    sa.Column("followed_posts", sa.Boolean, nullable=False),
    sa.Column("new_followers", sa.Boolean, nullable=False),
    sa.Column("digest", sa.Boolean, nullable=False),
    sa.Column("theme", sa.SmallInteger, nullable=False),
    sa.Column("visibility", sa.SmallInteger, nullable=False),
    sa.Column("updated_at", Moment, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
)

# Each direction has an index in the order of following.
follows = sa.Table(
    "follows",
    metadata,
    sa.Column(
        "follower_id", sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True
    ),
    sa.Column(
        "followed_id", sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True
    ),
    sa.Column("created_at", Moment, nullable=False),
    sa.CheckConstraint("follower_id <> followed_id", name="ck_follows_self"),
    sa.Index("idx_follows_follower_id", "follower_id", "created_at", "followed_id"),
    sa.Index("idx_follows_followed_id", "followed_id", "created_at", "follower_id"),
)

# Events mark a row as stale; a periodic job recounts it.
user_analytics = sa.Table(
    "user_analytics",
    metadata,
    sa.Column(
        "user_id", sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True
    ),
    sa.Column("posts", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("followers", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("last_seen_at", Moment),
    sa.Column("counted_at", Moment),
    sa.Column("stale", sa.Boolean, nullable=False, server_default=sa.true()),
    sa.Index("idx_user_analytics_stale", "user_id", postgresql_where=sa.text("stale")),
)

# `actor_id` has published a post or, without a post, follows the member. One row for
# each post and each follower, however often it is repeated.
notifications = sa.Table(
    "notifications",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("user_id", sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    sa.Column(
        "actor_id", sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False
    ),
    sa.Column("post_id", sa.ForeignKey("posts.id", ondelete="CASCADE")),
    sa.Column("created_at", Moment, nullable=False),
    sa.Column("told_at", Moment),
    sa.Index("idx_notifications_user_id", "user_id", "id"),
    sa.Index("idx_notifications_actor_id", "actor_id"),
    sa.Index("idx_notifications_post_id", "post_id", "user_id", unique=True),
    sa.Index(
        "idx_notifications_follower",
        "user_id",
        "actor_id",
        unique=True,
        postgresql_where=sa.text("post_id is null"),
    ),
    sa.Index("idx_notifications_created_at", "created_at"),
    sa.Index(
        "idx_notifications_told_at",
        "created_at",
        postgresql_where=sa.text("told_at is null"),
    ),
)
