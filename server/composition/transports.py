"""Transports: how calls reach the services: gRPC, batched gRPC, REST in process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import grpc
from fastapi import FastAPI

from edge.config import EdgeSettings
from edge.http.trusted_proxies import TrustedProxies
from edge.port import CallError, CallPort, Reply
from server.composition.edge.app import edge_app, edge_settings, rates
from server.composition.edge.tracing import trace_edge
from server.composition.feature import Drain, DrainStage, Feature
from server.composition.listeners.limits import max_connections
from server.composition.resources import Resources
from server.rpc.batching.call import call_executor
from server.rpc.batching.stream import BatchingServicer
from server.rpc.call import Method, Proceed
from server.rpc.connections import ConnectionCounter
from server.rpc.grpc_messages import MessageChannel
from server.rpc.grpc_server import build_grpc_server
from server.rpc.interceptors.admission import MAX_CALLS
from server.rpc.listener import ChainDependencies, Listener
from server.rpc.local import LocalPort
from server.rpc.standard_services.health import POLL_INTERVAL, Health
from server.rpc.standard_services.reflection import enable_reflection
from server.rpc.standard_services.unknown_methods import UnknownMethods
from server.workers.event_loop_monitor import EventLoopMonitor
from server.workers.poller import Poller

ServedMethods = Mapping[str, tuple[Method, Proceed]]  # by path


@dataclass(frozen=True, slots=True)
class Transports:
    """The gRPC server and the REST edge, not listening yet, and their tasks."""

    grpc: grpc.aio.Server
    port: CallPort
    http: FastAPI
    ready: Callable[[], Awaitable[bool]]
    connections: ConnectionCounter
    feature: Feature


def build_transports(
    resources: Resources,
    services: Sequence[str],
    served: ServedMethods,
    dependencies: ChainDependencies,
) -> Transports:
    """Build every transport of the `services`, whose methods are `served`."""
    settings = resources.settings
    proxies = TrustedProxies(settings.trusted_proxies)
    execute = call_executor(served, proxies, resources.metrics.calls)
    messages, connections = MessageChannel(dependencies.timer), ConnectionCounter()
    batching = BatchingServicer(execute, MAX_CALLS, messages, connections)
    reads_certificates = bool(settings.service_certificates)
    listener = Listener(proxies, messages, connections, reads_certificates)
    health = Health(resources.database.ping, list(services))
    server = build_grpc_server(
        [*listener.handlers(served), batching.handler()],
        max_connections(),
        reuse_port=settings.workers > 1,
        max_connection_age=settings.grpc_max_connection_age,
    )
    health.add_to(server)
    if settings.debug:
        enable_reflection(server, (*services, health.name))
    server.add_generic_rpc_handlers((UnknownMethods(resources.metrics.calls),))
    calls = resources.metrics.calls
    port = LocalPort(served, proxies, calls, Reply, CallError)
    http = edge_app(port, _edge_settings(resources, health, proxies))
    monitor = EventLoopMonitor(resources.metrics.edge.loop_lag.observe)
    feature = _transport_feature(health, batching, monitor)
    return Transports(server, port, http, health.ready, connections, feature)


def _edge_settings(
    resources: Resources, health: Health, proxies: TrustedProxies
) -> EdgeSettings:
    settings = resources.settings
    edge = replace(
        edge_settings(settings, rates(settings)),
        ready=health.ready,
        observe_request=resources.metrics.edge.requests.observe,
    )
    return trace_edge(edge, resources.tracing, proxies)


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
