"""build_application: folds the features into one application, in a stated order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
from fastapi import FastAPI

from edge.port import CallPort
from edge.stepping import start
from edge.timers import SharedTimer
from server.composition.accounts import accounts_feature
from server.composition.application_metrics import ApplicationMetrics
from server.composition.auth import auth_feature, authentication
from server.composition.databases import replica_feature
from server.composition.edge.app import rates
from server.composition.feature import (
    DrainCalls,
    Feature,
    fold_servicers,
    run_features,
)
from server.composition.log_ins.features import log_in_features
from server.composition.log_ins.rules import log_in_rules
from server.composition.members import members_feature
from server.composition.outbox import outbox_feature
from server.composition.posts import posts_feature
from server.composition.resources import Resources
from server.composition.startup import Startup, Step
from server.composition.stores import Stores, build_stores
from server.composition.transports import build_transports
from server.domain.auth.authentication import Authentication
from server.domain.credentials.service_keys import ServiceKeys
from server.domain.idempotency import Idempotency
from server.rpc.connections import ConnectionCounter
from server.rpc.deadlines import TIMER_INTERVAL
from server.rpc.interceptors.admission import Admission
from server.rpc.listener import ChainDependencies, serve_methods
from server.store.idempotent_responses import PostgresIdempotentResponses


@dataclass(frozen=True, slots=True)
class Application:
    """The application, not listening yet.

    Call `drain` before the listeners stop: see DrainCalls.
    `check` raises an error that ended a startup which had to wait for Postgres.
    `connections` and `service_keys` have figures for metrics.
    """

    grpc: grpc.aio.Server
    port: CallPort
    http: FastAPI
    drain: DrainCalls
    check: Callable[[], None]
    ready: Callable[[], Awaitable[bool]]
    render_metrics: Callable[[], Awaitable[bytes]]
    connections: ConnectionCounter
    service_keys: ServiceKeys


@asynccontextmanager
async def build_application(
    resources: Resources, *startup_checks: Step
) -> AsyncIterator[Application]:
    """Build the application and run its tasks until the block ends.

    The `startup_checks` run before anything else and have to succeed. While Postgres
    does not respond, calls are refused.

    Raises StoreUnavailable, UnreadableKeys, ContractError, ConfigurationError.
    """
    startup = Startup(
        resources.database.ping,
        *startup_checks,
        restarts=resources.metrics.restarts,
    )
    stores = build_stores(resources)
    sign_in = authentication(resources, stores)
    features = build_features(resources, stores, sign_in)
    servicers = fold_servicers(features)
    dependencies = chain_dependencies(resources, stores, sign_in, startup)
    served = serve_methods(servicers, dependencies)
    # before the tasks start: building the edge blocks the event loop longer than the
    # timeout with which they connect to Redis
    transports = build_transports(resources, list(servicers), served, dependencies)
    features.append(transports.feature)
    async with run_features(features, startup) as drain_calls:
        yield Application(
            grpc=transports.grpc,
            port=transports.port,
            http=transports.http,
            drain=drain_calls,
            check=startup.check,
            ready=transports.ready,
            render_metrics=ApplicationMetrics(resources, stores).render,
            connections=transports.connections,
            service_keys=sign_in.service_keys,
        )


def build_features(
    resources: Resources, stores: Stores, sign_in: Authentication
) -> list[Feature]:
    """Build every feature, in the order in which they start."""
    rules = log_in_rules(resources, sign_in)
    return [
        auth_feature(resources, stores, rules),
        *log_in_features(resources, stores, rules),
        accounts_feature(resources, stores, sign_in),
        members_feature(resources, stores),
        posts_feature(resources),
        outbox_feature(resources, stores),
        replica_feature(resources.database, resources.metrics),
    ]


def chain_dependencies(
    resources: Resources, stores: Stores, sign_in: Authentication, startup: Startup
) -> ChainDependencies:
    """Return what the interceptors of every RPC depend on."""
    return ChainDependencies(
        verify=sign_in.identify,
        refresh_keys=stores.key_ring.reload,
        limiter=resources.limiter,
        idempotency=Idempotency(
            PostgresIdempotentResponses(resources.database),
            resources.secret.mac("requests"),
        ),
        audit=stores.audit,
        clock=resources.clock,
        is_started=lambda: startup.complete,
        rates=rates(resources.settings),
        timer=SharedTimer(TIMER_INTERVAL),
        start=start,
        admission=Admission(),
        metrics=resources.metrics.calls,
        tracing=resources.tracing,
        second_factor_roles=resources.settings.mfa_required_roles,
    )
