"""Dead letters are counted for the metrics without reading delivered entries."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    """Add the index."""
    op.create_index(
        "idx_outbox_dead", "outbox", ["id"], postgresql_where=sa.text("state = 2")
    )
