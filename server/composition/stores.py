"""The stores that several features share."""

from __future__ import annotations

from dataclasses import dataclass

from server.composition.resources import Resources
from server.domain.credentials.tokens import KeyRing
from server.store.accounts.user_cache import CachedUsers
from server.store.accounts.user_changes import UserChangeFeed
from server.store.accounts.user_reads import UserReads
from server.store.audit import PostgresAudit
from server.store.connections.signals import SignalReader
from server.store.credentials.mailed_tokens import PostgresMailedTokens
from server.store.credentials.service_keys import PostgresServiceKeys
from server.store.credentials.signing_keys import PostgresSigningKeys
from server.store.outbox import PostgresOutbox
from server.workers.periodic_jobs import DIGEST_AFTER


@dataclass(frozen=True, slots=True)
class Stores:
    """The shared stores of one process."""

    key_ring: KeyRing
    signing_keys: PostgresSigningKeys
    service_keys: PostgresServiceKeys
    audit: PostgresAudit
    users: CachedUsers
    user_changes: UserChangeFeed
    mailed_tokens: PostgresMailedTokens
    outbox: PostgresOutbox
    signals: SignalReader


def build_stores(resources: Resources) -> Stores:
    """Build the shared stores."""
    database, feed = resources.database, resources.feed
    key_ring = KeyRing()
    user_changes = UserChangeFeed(database, UserReads(database))
    users = CachedUsers(database, resources.redis, feed, user_changes)
    service_keys = PostgresServiceKeys(database, resources.clock)
    outbox = PostgresOutbox(database)
    signals = SignalReader(
        database,
        resources.clock,
        feed,
        DIGEST_AFTER,
        service_keys.follow,
        user_changes.follow,
        users.cache.follow,
    )
    return Stores(
        key_ring=key_ring,
        signing_keys=signing_key_store(resources, key_ring),
        service_keys=service_keys,
        audit=PostgresAudit(database),
        users=users,
        user_changes=user_changes,
        mailed_tokens=PostgresMailedTokens(database, feed, users.cache.replace),
        outbox=outbox,
        signals=signals,
    )


def signing_key_store(resources: Resources, key_ring: KeyRing) -> PostgresSigningKeys:
    """Return the store that keeps a key ring up to date."""
    return PostgresSigningKeys(
        resources.database,
        resources.redis,
        resources.secret,
        key_ring,
        resources.clock,
    )
