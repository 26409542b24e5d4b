"""Audit events of one actor are read in id order."""

from __future__ import annotations

from server.store.migrations.steps import create_index, drop_index

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Replace the index on the actor by one that is also in the order of ids."""
    create_index("idx_audit_events_actor_id", "audit_events", ["actor", "id"])
    drop_index("idx_audit_events_actor", "audit_events")
