"""Authentication: sessions, tokens, signing keys, service keys, revocations."""

from __future__ import annotations

from server.composition.feature import Drain, DrainStage, Feature
from server.composition.log_ins.rules import SERVICE, LogInRules
from server.composition.resources import Resources, page_tokens
from server.composition.stores import Stores, signing_key_store
from server.domain.audit import Audit
from server.domain.auth.authentication import Authentication
from server.domain.auth.recovery import Recovery
from server.domain.auth.revocation_watch import RevocationWatch
from server.domain.credentials.rotation import SigningKeys
from server.domain.credentials.service_keys import ServiceKeys
from server.domain.credentials.sessions import RefreshLimits, RefreshTokens
from server.domain.credentials.tokens import AccessTokens, KeyRing
from server.rpc.auth.authentication import AuthServicer
from server.rpc.auth.recovery import RecoveryServicer
from server.rpc.auth.revocation_watch import RevocationServicer
from server.rpc.auth.signing_keys import SigningKeyServicer
from server.store.accounts import user_changes
from server.store.credentials import signing_keys as signing_key_rows
from server.store.credentials.accounts import PostgresAccounts
from server.store.credentials.sessions import PostgresSessions
from server.store.credentials.signing_keys import PostgresSigningKeys
from server.workers.poller import Poller
from server.workers.supervisor import Subscription


def auth_feature(resources: Resources, stores: Stores, rules: LogInRules) -> Feature:
    """Build the feature."""
    authentication = rules.authentication
    feed, keys = resources.feed, stores.signing_keys
    audit = Audit(stores.audit, page_tokens(resources))

    async def close_streams() -> None:
        feed.buffer.close()

    return Feature(
        servicers={
            SERVICE: (
                AuthServicer(authentication, rules.log_ins, stores.key_ring, audit),
                RecoveryServicer(Recovery(authentication, stores.mailed_tokens)),
                RevocationServicer(RevocationWatch(feed)),
                SigningKeyServicer(signing_keys(resources, keys)),
            )
        },
        tasks=(
            Poller(
                "signing keys",
                keys.refresh,
                signing_key_rows.POLL_INTERVAL,
                wake=keys.wake,
                before_serving=True,
            ),
            # revocations, service keys, user changes, and whether work is due
            Poller(
                "signals",
                stores.signals.refresh,
                stores.user_changes.interval,
                wake=feed.wakeups.wake,
                min_interval=user_changes.MIN_INTERVAL,
                before_serving=True,
            ),
            stores.audit,
            Subscription("signing key messages", keys.listen),
            Subscription("change messages", feed.wakeups.listen),
        ),
        drains=(
            Drain(DrainStage.STREAMS, close_streams),
            Drain(DrainStage.OUTBOX, stores.audit.drain),
        ),
    )


def authentication(resources: Resources, stores: Stores) -> Authentication:
    """Build the log-in rules, which several features use."""
    settings = resources.settings
    limits = RefreshLimits(
        idle=settings.refresh_idle,
        absolute=settings.refresh_absolute,
        grace=settings.refresh_grace,
    )
    return Authentication(
        accounts=PostgresAccounts(resources.database),
        sessions=PostgresSessions(
            resources.database, resources.feed, settings.max_sessions
        ),
        hasher=resources.hasher,
        access=AccessTokens(
            settings.token_issuer,
            settings.token_audience,
            stores.key_ring,
            resources.clock,
        ),
        refresh=RefreshTokens(resources.secret.mac("refresh-tokens"), limits),
        revocations=resources.revocations,
        service_keys=ServiceKeys(
            stores.service_keys, resources.clock, settings.service_certificates
        ),
        attempts=resources.limiter,
        email_outbox=stores.outbox,
        policy=settings.password_policy,
        clock=resources.clock,
    )


def signing_keys(
    resources: Resources, store: PostgresSigningKeys | None = None
) -> SigningKeys:
    """Build the rules of the keys that sign access tokens."""
    store = store or signing_key_store(resources, KeyRing())
    return SigningKeys(store, resources.clock)
