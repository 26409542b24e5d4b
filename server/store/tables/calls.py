"""What calls leave behind: responses, audit events, outbox entries."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA, JSONB

from server.store.tables.base import Moment, metadata

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
