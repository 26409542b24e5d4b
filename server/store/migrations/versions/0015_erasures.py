"""Add the progress of erasures, which run in batches."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Add the table."""
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
