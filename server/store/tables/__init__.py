"""The schema, as SQLAlchemy Core tables; the Alembic migrations lead to it.

Ids are BIGINT identities and never reused. E-mail addresses are stored normalized;
usernames are stored beside their normalized form, which is unique.
"""

from server.store.tables.accounts import (
    erasures,
    users,
)
from server.store.tables.base import (
    Moment,
    metadata,
)
from server.store.tables.calls import (
    audit_events,
    outbox,
    outbox_queue,
    request_answers,
)
from server.store.tables.credentials import (
    mailed_tokens,
    revocations,
    service_keys,
    sessions,
    signing_keys,
    write_epochs,
)
from server.store.tables.factors import (
    challenges,
    factors,
    identities,
    recovery_codes,
)
from server.store.tables.members import (
    follows,
    notifications,
    user_analytics,
    user_profiles,
    user_settings,
)
from server.store.tables.posts import (
    categories,
    posts,
)

__all__ = [
    "Moment",
    "audit_events",
    "categories",
    "challenges",
    "erasures",
    "factors",
    "follows",
    "identities",
    "mailed_tokens",
    "metadata",
    "notifications",
    "outbox",
    "outbox_queue",
    "posts",
    "recovery_codes",
    "request_answers",
    "revocations",
    "service_keys",
    "sessions",
    "signing_keys",
    "user_analytics",
    "user_profiles",
    "user_settings",
    "users",
    "write_epochs",
]
