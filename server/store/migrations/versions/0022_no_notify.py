"""Changes of accounts and of the outbox are no longer notified by Postgres.

A process of the release before would not see changes made elsewhere: it caches an
account for 5 s, and in Redis for an hour, unless it is notified.
"""

from __future__ import annotations

from alembic import op

revision = "0022"
down_revision = "0021"
after_rollout = True


def upgrade() -> None:
    """Drop the triggers and their functions."""
    op.execute("drop trigger if exists user_changed on users")
    op.execute("drop trigger if exists outbox_written on outbox")
    op.execute("drop function if exists tell_user_changed()")
    op.execute("drop function if exists tell_outbox_written()")
