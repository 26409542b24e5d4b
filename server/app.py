"""The composition root: builds everything, read aloud from top to bottom."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from importlib.metadata import version

import grpc
from fastapi import FastAPI
from pydantic import SecretStr
from redis.asyncio import Redis

from edge.app import create_app
from edge.batching import BatchingPort
from edge.config import EdgeSettings, TokenCookie
from edge.port import CallError, CallPort, Reply
from server import systems
from server.config import Pooler, Settings, require
from server.deliveries import delivering
from server.domain.accounts.personal_data import PersonalData
from server.domain.accounts.user_batches import UserBatches
from server.domain.accounts.user_export import UserExport
from server.domain.accounts.user_watch import UserWatch
from server.domain.accounts.users import Users
from server.domain.audit import Audit
from server.domain.auth import Authentication
from server.domain.clock import Clock, system_clock
from server.domain.credentials.mailed_tokens import MailedTokens
from server.domain.credentials.passwords import PasswordHasher
from server.domain.credentials.revocations import Revocations
from server.domain.credentials.rotation import SigningKeys
from server.domain.credentials.secret_key import SecretKey
from server.domain.credentials.service_keys import ServiceKeys
from server.domain.credentials.sessions import RefreshLimits, RefreshTokens
from server.domain.credentials.tokens import AccessTokens, KeyRing
from server.domain.idempotency import Idempotency
from server.domain.limits import Limiter, SlidingWindows, Window
from server.domain.outbox.emails import EmailComposer
from server.domain.paging import PageTokens
from server.domain.recovery import Recovery
from server.domain.revocation_watch import RevocationWatch
from server.rpc import contract
from server.rpc.accounts.bulk_users import BulkUserServicer
from server.rpc.accounts.personal_data import PersonalDataServicer
from server.rpc.accounts.users import UserServicer
from server.rpc.addresses import TrustedProxies
from server.rpc.auth import AuthServicer
from server.rpc.batching import BatchingServicer, answering
from server.rpc.health import Health, remote_readiness
from server.rpc.interceptors.errors import DOMAIN
from server.rpc.interceptors.validation import NO_NUL
from server.rpc.listener import (
    MOST_CALLS,
    ChainDependencies,
    Listener,
    grpc_server,
    serve_methods,
)
from server.rpc.local import LocalPort
from server.rpc.recovery import RecoveryServicer
from server.rpc.reflection import reflect
from server.rpc.signing_keys import SigningKeyServicer
from server.rpc.watches import RevocationServicer, UserWatchServicer
from server.store.accounts.personal_data import PostgresPersonalData
from server.store.accounts.user_batches import PostgresUserBatches
from server.store.accounts.user_cache import CachedUsers
from server.store.accounts.user_changes import UserChangeFeed
from server.store.accounts.user_reads import UserReads
from server.store.accounts.users import PostgresUsers
from server.store.audit import PostgresAudit
from server.store.buckets import RedisBuckets
from server.store.connect import Database, redis_client
from server.store.credentials.accounts import PostgresAccounts
from server.store.credentials.mailed_tokens import PostgresMailedTokens
from server.store.credentials.revocations import RevocationFeed
from server.store.credentials.service_keys import PostgresServiceKeys
from server.store.credentials.sessions import PostgresSessions
from server.store.credentials.signing_keys import PostgresSigningKeys
from server.store.idempotent_responses import PostgresIdempotentResponses
from server.store.members.notifications import PostgresNotifications
from server.store.outbox import PostgresOutbox
from server.store.retention import ENTRIES_KEPT, Retention
from server.workers.supervisor import supervise

Rates = Mapping[str, Sequence[contract.RateRule]]


@dataclass(frozen=True, slots=True)
class Resources:
    """What everything stands on."""

    settings: Settings
    clock: Clock
    secret: SecretKey
    database: Database
    redis: Redis
    limiter: Limiter
    hasher: PasswordHasher
    known: Revocations
    feed: RevocationFeed


@dataclass(frozen=True, slots=True)
class Application:
    """Everything built, nothing listening yet."""

    health: Health
    grpc: grpc.aio.Server
    port: CallPort
    http: FastAPI


@asynccontextmanager
async def open_resources(settings: Settings) -> AsyncIterator[Resources]:
    """Open what everything stands on, and close it after.

    Raises ConfigurationError for a setting that is missing.
    """
    require(settings, "database_url", "redis_url", "secret_key")
    database = Database(
        _text(settings.database_url),
        transaction_pooler=settings.database_pooler is Pooler.TRANSACTION,
    )
    redis = redis_client(_text(settings.redis_url))
    limiter = RedisBuckets(redis, SlidingWindows(system_clock))
    hasher = PasswordHasher()
    secret = SecretKey(
        _text(settings.secret_key), _text(settings.secret_key_previous) or None
    )
    known = Revocations(system_clock)
    feed = RevocationFeed(database, redis, known, system_clock)
    try:
        yield Resources(
            settings,
            system_clock,
            secret,
            database,
            redis,
            limiter,
            hasher,
            known,
            feed,
        )
    finally:
        hasher.close()
        await redis.aclose()
        await database.close()


@asynccontextmanager
async def build_application(
    resources: Resources, lame_duck: timedelta = timedelta(0)
) -> AsyncIterator[Application]:
    """Build the services, and keep what they know of the stores fresh.

    Draining, they still answer for `lame_duck`, so that callers hear of it.

    Raises StoreUnavailable, UnreadableKeys, ContractError, ConfigurationError.
    """
    settings, stores = resources.settings, _build_stores(resources)
    authentication = _authentication(resources, stores)
    servicers = _servicers(resources, stores, authentication)
    served = serve_methods(
        servicers, _chain_dependencies(resources, authentication, stores.events)
    )
    proxies = TrustedProxies(settings.trusted_proxies)
    batching = BatchingServicer(answering(served, proxies), MOST_CALLS)
    ends = (resources.feed.buffer.close, stores.changes.buffer.close, batching.drain)
    health = Health(resources.database.ping, list(servicers), lame_duck, *ends)
    server = grpc_server([*Listener(proxies).handlers(served), batching.handler()])
    health.add_to(server)
    if settings.debug:
        reflect(server, (*servicers, health.name))
    port = LocalPort(served, proxies, Reply, CallError)
    edge = replace(edge_settings(settings, rates(settings)), ready=health.ready)
    shared = (resources.database, resources.clock)
    fresh = (stores.keys, resources.feed, stores.services, stores.changes, health)
    for source in fresh:
        await source.refresh()
    rest = (
        stores.accounts.cache,
        _retention(resources),
        systems.periodic_jobs(*shared),
    )
    works = [source.run for source in (*fresh, *rest)]
    emails, event_handlers = (
        _email_composer(resources, stores),
        systems.event_handlers(*shared),
    )
    async with (
        supervise(*works, resources.feed.listen, stores.keys.listen),
        delivering(settings, stores.outbox, emails, event_handlers, resources.clock),
    ):
        yield Application(health, server, port, edge_app(port, edge))


@dataclass(frozen=True, slots=True)
class Stores:
    """The stores that several services share."""

    ring: KeyRing
    keys: PostgresSigningKeys
    events: PostgresAudit
    services: PostgresServiceKeys
    accounts: CachedUsers
    outbox: PostgresOutbox
    changes: UserChangeFeed
    mailed: PostgresMailedTokens


def _build_stores(resources: Resources) -> Stores:
    ring, outbox = KeyRing(), PostgresOutbox(resources.database)
    accounts = CachedUsers(resources.database, resources.redis, resources.feed)
    changes = UserChangeFeed(resources.database, UserReads(resources.database))
    outbox.tell(changes.told)
    return Stores(
        ring=ring,
        keys=_kept_keys(resources, ring),
        events=PostgresAudit(resources.database),
        services=PostgresServiceKeys(resources.database, resources.clock),
        accounts=accounts,
        outbox=outbox,
        changes=changes,
        mailed=PostgresMailedTokens(
            resources.database, resources.feed, accounts.cache.keep
        ),
    )


def _servicers(
    resources: Resources, stores: Stores, authentication: Authentication
) -> Mapping[str, Sequence[object]]:
    """Give what implements each service, by its name."""
    database, clock, tokens = (
        resources.database,
        resources.clock,
        page_tokens(resources),
    )
    audit = Audit(stores.events, tokens)
    return {
        "blatam.user.v1.UserService": (
            UserServicer(users(resources, stores.accounts)),
            BulkUserServicer(user_batches(resources), UserExport(stores.accounts)),
            UserWatchServicer(UserWatch(stores.changes, ENTRIES_KEPT, clock)),
            PersonalDataServicer(
                PersonalData(_held(resources, stores), authentication)
            ),
            *systems.members(database, stores.accounts, tokens, clock),
        ),
        "blatam.auth.v1.AuthService": (
            AuthServicer(authentication, stores.ring, audit),
            RecoveryServicer(Recovery(authentication, stores.mailed)),
            RevocationServicer(RevocationWatch(resources.feed)),
            SigningKeyServicer(signing_keys(resources, stores.keys)),
        ),
        "blatam.post.v1.PostService": systems.posts(database, tokens, clock),
    }


def _held(resources: Resources, stores: Stores) -> PostgresPersonalData:
    return PostgresPersonalData(
        resources.database, resources.feed, stores.accounts.cache.drop
    )


def _retention(resources: Resources) -> Retention:
    stores = resources.settings.user_retention
    return Retention(resources.database, resources.feed, stores, resources.clock)


def _email_composer(resources: Resources, stores: Stores) -> EmailComposer:
    tokens = MailedTokens(
        stores.mailed, resources.secret.mac("mailed-tokens"), resources.clock
    )
    users, accounts = (
        UserReads(resources.database),
        PostgresAccounts(resources.database),
    )
    notifications = PostgresNotifications(resources.database, resources.clock)
    return EmailComposer(users, accounts, stores.outbox, tokens, notifications)


def _chain_dependencies(
    resources: Resources, authentication: Authentication, events: PostgresAudit
) -> ChainDependencies:
    return ChainDependencies(
        verify=authentication.identify,
        learn=authentication.access.ring.learn,
        limiter=resources.limiter,
        idempotency=Idempotency(
            PostgresIdempotentResponses(resources.database),
            resources.secret.mac("requests"),
        ),
        audit=events,
        clock=resources.clock,
        rates=rates(resources.settings),
    )


def _kept_keys(resources: Resources, ring: KeyRing) -> PostgresSigningKeys:
    return PostgresSigningKeys(
        resources.database, resources.redis, resources.secret, ring, resources.clock
    )


def signing_keys(
    resources: Resources, stores: PostgresSigningKeys | None = None
) -> SigningKeys:
    """Give the rules of the keys that sign access tokens over their store."""
    return SigningKeys(stores or _kept_keys(resources, KeyRing()), resources.clock)


def page_tokens(resources: Resources) -> PageTokens:
    """Give what names the next page of any list."""
    return PageTokens(resources.secret.mac("page-tokens"))


def users(resources: Resources, accounts: PostgresUsers | None = None) -> Users:
    """Give the rules of accounts over their store."""
    return Users(
        store=accounts or PostgresUsers(resources.database, resources.feed),
        hasher=resources.hasher,
        tokens=page_tokens(resources),
        policy=resources.settings.password_policy,
        retention=resources.settings.user_retention,
        clock=resources.clock,
    )


def user_batches(resources: Resources) -> UserBatches:
    """Give the rules of making many accounts over their store."""
    return UserBatches(
        store=PostgresUserBatches(resources.database),
        hasher=resources.hasher,
        policy=resources.settings.password_policy,
        clock=resources.clock,
    )


def _authentication(resources: Resources, stores: Stores) -> Authentication:
    settings = resources.settings
    limits = RefreshLimits(
        idle=settings.refresh_idle,
        absolute=settings.refresh_absolute,
        grace=settings.refresh_grace,
    )
    return Authentication(
        accounts=PostgresAccounts(resources.database),
        sessions=PostgresSessions(resources.database, resources.feed),
        hasher=resources.hasher,
        access=AccessTokens(
            settings.token_issuer, settings.token_audience, stores.ring, resources.clock
        ),
        refresh=RefreshTokens(resources.secret.mac("refresh-tokens"), limits),
        revocations=resources.known,
        service_keys=ServiceKeys(stores.services, resources.clock),
        attempts=resources.limiter,
        mailing=stores.outbox,
        policy=settings.password_policy,
        clock=resources.clock,
    )


def edge_app(port: CallPort, settings: EdgeSettings) -> FastAPI:
    """Give the REST edge over the whole contract."""
    return create_app(contract.descriptors(), port, settings)


def remote_edge(channel: grpc.aio.Channel, settings: Settings) -> FastAPI:
    """Give the REST edge in front of a server elsewhere."""
    edge = edge_settings(settings, rates(settings))
    edge = replace(edge, ready=remote_readiness(channel))
    return edge_app(BatchingPort(channel), edge)


def edge_settings(settings: Settings, in_force: Rates) -> EdgeSettings:
    """Give the edge's plain tables, read from blatam's own annotations."""
    return EdgeSettings(
        title="Blatam Academy",
        version=version("blatam-academy"),
        public_url=settings.public_url,
        docs=settings.debug,
        debug=settings.debug,
        cors_origins=settings.cors_origins,
        trusted_proxies=tuple(map(str, settings.trusted_proxies)),
        serve_trailing_slash=True,
        text_pattern=NO_NUL,
        error_domain=DOMAIN,
        public_methods=contract.public_methods(),
        public_max_age=contract.public_max_age(),
        rate_limits=contract.rate_sentences(in_force),
        cookies=tuple(
            TokenCookie(
                name=name,
                reply_fields=table.reply_fields,
                request_fields=table.request_fields,
                max_age_fields=table.max_age_fields,
                cleared_by=frozenset(table.cleared_by),
            )
            for name, table in contract.cookies().items()
        ),
    )


def rates(settings: Settings) -> Rates:
    """Give the operator's rates. Raises ContractError for an RPC that is not there."""
    contract.check_overrides(settings.rate_limits)
    found = {
        name: [
            contract.RateRule(tuple(rule.by), Window(rule.limit, rule.per))
            for rule in rules
        ]
        for name, rules in settings.rate_limits.items()
    }
    contract.rate_sentences(found)  # looks at every rule
    return found


def _text(secret: SecretStr | None) -> str:
    return secret.get_secret_value() if secret else ""
