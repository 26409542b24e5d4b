"""Erasures run in batches: how far each one is, and events of an actor by id."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Add the table, and replace an index by one that can continue after an id."""
    op.create_table(
        "erasures",
        sa.Column("account_id", sa.BigInteger(), nullable=False),
        sa.Column("begun_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_event", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column(
            "last_actor_event", sa.BigInteger(), server_default="0", nullable=False
        ),
        sa.PrimaryKeyConstraint("account_id", name=op.f("pk_erasures")),
    )
    op.create_index("idx_audit_events_actor_id", "audit_events", ["actor", "id"])
    op.drop_index("idx_audit_events_actor", "audit_events")
