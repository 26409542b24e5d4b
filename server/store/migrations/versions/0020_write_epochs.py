"""Epochs of writing transactions, for engines without transaction ids."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    """Create the first epoch; a revocation is written by an epoch if there is one."""
    op.create_table(
        "write_epochs",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_write_epochs")),
    )
    op.execute("insert into write_epochs (id) values (1)")
    op.alter_column(
        "revocations",
        "written_by",
        server_default=sa.text(
            "coalesce(nullif(current_setting('academy.write_epoch', true), '')::bigint,"
            " pg_current_xact_id()::text::bigint)"
        ),
    )
