"""Every change of an account is notified on a channel when it commits."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Notify channel `users` with "id version", for changes by any client."""
    op.execute(
        """
        create function tell_user_changed() returns trigger language plpgsql as $$
        begin
          perform pg_notify('users', new.id || ' ' || new.version);
          return null;
        end $$
        """
    )
    op.execute(
        "create trigger user_changed after update on users "
        "for each row execute function tell_user_changed()"
    )
