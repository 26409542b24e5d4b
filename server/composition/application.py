"""build_application: folds the features into one application, in a stated order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import grpc
from fastapi import FastAPI

from edge.http.trusted_proxies import TrustedProxies
from edge.port import CallError, CallPort, Reply
from edge.timers import SharedTimer
from server.composition.accounts import accounts_feature
from server.composition.application_metrics import ApplicationMetrics
from server.composition.auth import auth_feature, authentication
from server.composition.edge import edge_app, edge_settings, rates
from server.composition.feature import (
    Drain,
    DrainCalls,
    DrainStage,
    Feature,
    fold_servicers,
    run_features,
)
from server.composition.members import members_feature
from server.composition.outbox import outbox_feature
from server.composition.posts import posts_feature
from server.composition.resources import Resources, Stores, build_stores
from server.composition.startup import Startup, Step
from server.config import Settings
from server.domain.auth.authentication import Authentication
from server.domain.idempotency import Idempotency
from server.rpc.batched_call import call_executor
from server.rpc.batching import BatchingServicer
from server.rpc.deadlines import TIMER_INTERVAL
from server.rpc.grpc_server import MAX_CONCURRENT_CALLS, build_grpc_server
from server.rpc.health import POLL_INTERVAL, Health
from server.rpc.listener import ChainDependencies, Listener, serve_methods
from server.rpc.local import LocalPort
from server.rpc.reflection import enable_reflection
from server.rpc.unknown_methods import UnknownMethods
from server.store.idempotent_responses import PostgresIdempotentResponses
from server.workers.event_loop_monitor import EventLoopMonitor
from server.workers.poller import Poller


@dataclass(frozen=True, slots=True)
class Application:
    """The application, not listening yet.

    Call `drain` before the listeners stop: see DrainCalls.
    `check` raises an error that ended a startup which had to wait for Postgres.
    """

    grpc: grpc.aio.Server
    port: CallPort
    http: FastAPI
    drain: DrainCalls
    check: Callable[[], None]
    ready: Callable[[], Awaitable[bool]]
    render_metrics: Callable[[], Awaitable[bytes]]


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
    served = serve_methods(
        servicers, chain_dependencies(resources, stores, sign_in, startup)
    )
    settings = resources.settings
    proxies = TrustedProxies(settings.trusted_proxies)
    execute = call_executor(served, proxies, resources.metrics.calls)
    batching = BatchingServicer(execute, MAX_CONCURRENT_CALLS)
    health = Health(resources.database.ping, list(servicers))
    handlers = [*Listener(proxies).handlers(served), batching.handler()]
    server = _grpc_server(handlers, settings)
    await health.start()
    health.add_to(server)
    if settings.debug:
        enable_reflection(server, (*servicers, health.name))
    server.add_generic_rpc_handlers((UnknownMethods(resources.metrics.calls),))
    port = LocalPort(served, proxies, Reply, CallError)
    edge = replace(
        edge_settings(settings, rates(settings)),
        ready=health.ready,
        observe_request=resources.metrics.edge.requests.observe,
    )
    monitor = EventLoopMonitor(resources.metrics.edge.loop_lag.observe)
    features.append(_transport_feature(health, batching, monitor))
    # before the tasks start: building it blocks the event loop longer than the
    # timeout with which they connect to Redis
    http = edge_app(port, edge)
    async with run_features(features, startup) as drain_calls:
        render = ApplicationMetrics(resources, stores).render
        yield Application(
            server, port, http, drain_calls, startup.check, health.ready, render
        )


def _grpc_server(
    handlers: Iterable[grpc.GenericRpcHandler], settings: Settings
) -> grpc.aio.Server:
    return build_grpc_server(
        handlers,
        reuse_port=settings.workers > 1,
        max_connection_age=settings.grpc_max_connection_age,
    )


def build_features(
    resources: Resources, stores: Stores, sign_in: Authentication
) -> list[Feature]:
    """Build every feature, in the order in which they start."""
    return [
        auth_feature(resources, stores, sign_in),
        accounts_feature(resources, stores, sign_in),
        members_feature(resources, stores),
        posts_feature(resources),
        outbox_feature(resources, stores),
    ]


def _transport_feature(
    health: Health, batching: BatchingServicer, monitor: EventLoopMonitor
) -> Feature:
    """Return health, which is refreshed last, and what belongs to no other feature."""

    async def drain_batching() -> None:
        batching.drain()

    return Feature(
        tasks=(
            Poller("health", health.refresh, POLL_INTERVAL, before_serving=True),
            monitor,
        ),
        drains=(
            Drain(DrainStage.HEALTH, health.drain),
            Drain(DrainStage.STREAMS, drain_batching),
            Drain(DrainStage.STREAMS, health.end_watches),
        ),
    )


def chain_dependencies(
    resources: Resources, stores: Stores, sign_in: Authentication, startup: Startup
) -> ChainDependencies:
    """Return what the interceptors of every RPC depend on."""
    return ChainDependencies(
        verify=sign_in.identify,
        refresh_keys=stores.key_ring.learn,
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
        metrics=resources.metrics.calls,
    )
