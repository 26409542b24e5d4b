"""The schema, as SQLAlchemy Core tables; the Alembic migrations lead to it.

Ids are BIGINT identities and never reused. E-mail addresses are stored normalized;
usernames are stored beside their normalized form, which is unique.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA, JSONB, UUID

metadata = sa.MetaData(
    naming_convention={
        "ix": "idx_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)
Moment = sa.DateTime(timezone=True)
_WRITTEN_BY = sa.text(
    "coalesce(nullif(current_setting('academy.write_epoch', true), '')::bigint,"
    " pg_current_xact_id()::text::bigint)"
)

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
    sa.Index("idx_sessions_user_id", "user_id"),
    sa.Index("idx_sessions_expires_at", "expires_at"),
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

request_answers = sa.Table(
    "request_answers",
    metadata,
    sa.Column("caller", sa.Text, primary_key=True),
    sa.Column("method", sa.Text, primary_key=True),
    sa.Column("request_id", sa.Text, primary_key=True),
    sa.Column("fingerprint", BYTEA, nullable=False),
    sa.Column("answer", BYTEA, nullable=False),
    sa.Column("answered_at", Moment, nullable=False),
    # the users in the response, so that erasing one of them deletes it
    sa.Column("about", ARRAY(sa.BigInteger), nullable=False, server_default="{}"),
    sa.Index("idx_request_answers_answered_at", "answered_at"),
    sa.Index("idx_request_answers_about", "about", postgresql_using="gin"),
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

audit_events = sa.Table(
    "audit_events",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("at", Moment, nullable=False),
    sa.Column("event", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    # no foreign key: an event outlives the account
    sa.Column("user_id", sa.BigInteger, nullable=False),
    sa.Column("address", sa.Text, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text, nullable=False),
    sa.Index("idx_audit_events_user_id", "user_id", "id"),
    sa.Index("idx_audit_events_event", "event", "id"),
    sa.Index("idx_audit_events_at", "at"),
    sa.Index("idx_audit_events_actor_id", "actor", "id"),
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

# The queue of an outbox entry (domain.outbox.entries.Queue), as an index has it.
outbox_queue = sa.literal_column(
    "((kind ~~ 'mail.%'::text)::integer + (kind = ANY (ARRAY["
    "'mail.followed_post'::text, 'mail.new_follower'::text,"
    " 'mail.digest'::text]))::integer)",
    sa.Integer,
)

# Events and e-mails: written in the transaction of the change, delivered by a worker,
# and read in id order by streams, which wait for late commits.
outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    # no foreign key: an event outlives the account
    sa.Column("user_id", sa.BigInteger),
    sa.Column("address", sa.String(255)),
    sa.Column("payload", JSONB, nullable=False, server_default="{}"),
    sa.Column("created_at", Moment, nullable=False),
    sa.Column("state", sa.SmallInteger, nullable=False, server_default="0"),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column(
        "next_attempt_at",
        Moment,
        nullable=False,
        server_default=sa.text("'-infinity'"),
    ),
    sa.Column("delivered_at", Moment),  # or dead-lettered
    sa.Column("last_error", sa.Text),
    sa.Index(
        "idx_outbox_due",
        outbox_queue,
        "next_attempt_at",
        "id",
        postgresql_where=sa.text("state = 0"),
    ),
    sa.Index("idx_outbox_dead", "id", postgresql_where=sa.text("state = 2")),
    sa.Index("idx_outbox_user_id", "user_id"),
    sa.Index(
        "idx_outbox_address",
        "address",
        postgresql_where=sa.text("address is not null"),
    ),
    sa.Index("idx_outbox_delivered_at", "delivered_at"),
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
