"""Each queue of the outbox is read in its own order."""

from __future__ import annotations

import sqlalchemy as sa

from server.store.migrations.steps import create_index, drop_index

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    """Replace the index of pending entries by one that begins with the queue."""
    queue = sa.text(
        "((kind ~~ 'mail.%'::text)::integer + (kind = ANY (ARRAY["
        "'mail.followed_post'::text, 'mail.new_follower'::text,"
        " 'mail.digest'::text]))::integer)"
    )
    create_index(
        "idx_outbox_due",
        "outbox",
        [queue, "next_attempt_at", "id"],
        postgresql_where=sa.text("state = 0"),
    )
    drop_index("idx_outbox_next_attempt_at", "outbox")
