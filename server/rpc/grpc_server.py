"""The gRPC server: its limits, its options and what it keeps out of the log."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import timedelta

import grpc

KIB = 1024
MIB = 1024 * KIB
MAX_METADATA_SIZE = 16 * KIB  # bytes
MAX_CALLS_PER_CONNECTION = 256
# Calls over all connections, those included that are still being received or whose
# response the client does not read, and the health watch of each connection. gRPC
# refuses more without details, so the chain has lower limits (interceptors/admission).
MAX_OPEN_CALLS = 20_480
MIN_PING_INTERVAL = timedelta(seconds=2)  # `academy edge` pings every 3 s
HANDSHAKE_TIMEOUT = timedelta(seconds=10)  # TLS, preface and the first SETTINGS
# A connection whose peer has vanished, or reads nothing, is closed after both.
PING_INTERVAL = timedelta(seconds=60)
PING_TIMEOUT = timedelta(seconds=20)
# For streams of a connection that is too old: an export of all accounts may end, and
# `academy edge` has moved its batching stream (edge/remote/batching.py) long before.
CONNECTION_AGE_GRACE = timedelta(minutes=5)
MILLISECOND = timedelta(milliseconds=1)
_grpc_log = logging.getLogger("grpc._cython.cygrpc")

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", 1 * MIB),
    ("grpc.max_metadata_size", MAX_METADATA_SIZE),
    ("grpc.max_concurrent_streams", MAX_CALLS_PER_CONNECTION),
    # Clients behind a NAT or a load balancer keep an idle connection open by pings.
    # By default gRPC allows one in 2 hours, or in 5 minutes during a call, and then
    # disconnects (too_many_pings).
    ("grpc.keepalive_permit_without_calls", 1),
    (
        "grpc.http2.min_ping_interval_without_data_ms",
        MIN_PING_INTERVAL // MILLISECOND,
    ),
    ("grpc.http2.max_ping_strikes", 2),  # the third early ping disconnects
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT // MILLISECOND),
    ("grpc.keepalive_time_ms", PING_INTERVAL // MILLISECOND),
    # not keepalive_timeout_ms: that one ends with the first bytes of a partial frame
    ("grpc.http2.ping_timeout_ms", PING_TIMEOUT // MILLISECOND),
)


def build_grpc_server(
    handlers: Iterable[grpc.GenericRpcHandler],
    max_connections: int = 8_192,
    *,
    reuse_port: bool = False,
    max_connection_age: timedelta = timedelta(0),
) -> grpc.aio.Server:
    """Return a server with these handlers. It does not listen yet.

    Without `reuse_port` a second server on the same port fails at start. A connection
    that reaches `max_connection_age` is closed without a failed call; 0: never.
    """
    _grpc_log.addFilter(is_not_a_lost_response)
    server = grpc.aio.server(
        options=(
            *OPTIONS,
            ("grpc.so_reuseport", int(reuse_port)),
            ("grpc.max_allowed_incoming_connections", max_connections),
            *_connection_age(max_connection_age),
        ),
        maximum_concurrent_rpcs=MAX_OPEN_CALLS,
    )
    server.add_generic_rpc_handlers(tuple(handlers))
    return server


def _connection_age(max_age: timedelta) -> tuple[tuple[str, int], ...]:
    """Return the options that limit the age of a connection. gRPC adds 10 % jitter."""
    if not max_age:
        return ()
    return (
        ("grpc.max_connection_age_ms", max_age // MILLISECOND),
        ("grpc.max_connection_age_grace_ms", CONNECTION_AGE_GRACE // MILLISECOND),
    )


def is_not_a_lost_response(record: logging.LogRecord) -> bool:
    """Return whether a record of grpc.aio is anything but a response not sent.

    A connection that breaks while a response waits to be sent fails that send.
    grpc.aio ignores the failure if it has read the end of the call by then; otherwise
    it logs an error with a traceback, and does nothing else (_handle_exceptions in
    grpc/_cython/_cygrpc/aio/server.pyx.pxi). Which one comes first is chance. The
    call has its own log line, so the traceback tells an operator nothing.
    """
    return not str(record.msg).startswith("ExecuteBatchError raised in core")
