"""A condition for counting many rows: that their account is not deleted.

Joined with the accounts, 10,000 rows cost a look-up each, for which the planner may
prefer to read all accounts. Few are deleted at any time, so those are read instead.
"""

from __future__ import annotations

import sqlalchemy as sa

from server.store.tables import users

_DELETED = (
    sa.select(users.c.id)
    .where(users.c.deleted_at.is_not(None))
    .cte("deleted_users")
    # otherwise the planner may scan all users, expecting an early match
    .prefix_with("MATERIALIZED", dialect="postgresql")
)


def is_not_deleted(user_id: sa.ColumnElement[int]) -> sa.ColumnElement[bool]:
    """Return the condition that the account with this id is not deleted."""
    return ~sa.exists().where(_DELETED.c.id == user_id)
