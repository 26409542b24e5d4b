"""A statement that writes no outbox entry wakes nobody.

One statement writes a change and, if there are any, its entries. A trigger for each
statement fires without entries, too.
"""

from __future__ import annotations

from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    """Notify channel `outbox` only of statements that wrote entries."""
    op.execute(
        """
        create or replace function tell_outbox_written() returns trigger
        language plpgsql as $$
        begin
          if exists (select from written) then
            perform pg_notify('outbox', '');
          end if;
          return null;
        end $$
        """
    )
    op.execute(
        "create or replace trigger outbox_written after insert on outbox "
        "referencing new table as written "
        "for each statement execute function tell_outbox_written()"
    )
