"""Every metric: its name, help, type, labels, and how workers' values are merged.

The names of the calls' metrics are those of go-grpc-prometheus, the name of the HTTP
metric and its buckets are those of OpenTelemetry's semantic conventions.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum, auto


class MetricType(StrEnum):
    """The types of the Prometheus text format."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Merge(Enum):
    """How the values of several worker processes become one value."""

    SUM = auto()
    MAX = auto()
    MIN = auto()


@dataclass(frozen=True, slots=True)
class Definition:
    """One metric. `buckets` are the upper bounds of a histogram, in seconds."""

    name: str
    help: str
    type: MetricType
    labels: tuple[str, ...] = ()
    merge: Merge = Merge.SUM
    buckets: tuple[float, ...] = ()


def _counter(name: str, help: str, *labels: str) -> Definition:  # noqa: A002
    return Definition(name, help, MetricType.COUNTER, labels)


def _gauge(name: str, help: str, *labels: str, merge: Merge) -> Definition:  # noqa: A002
    return Definition(name, help, MetricType.GAUGE, labels, merge)


def _histogram(
    name: str,
    help: str,  # noqa: A002
    *labels: str,
    buckets: tuple[float, ...],
) -> Definition:
    return Definition(name, help, MetricType.HISTOGRAM, labels, buckets=buckets)


CALL_LABELS = ("grpc_type", "grpc_service", "grpc_method", "transport")
CALL_BUCKETS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
HTTP_BUCKETS = (
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
WAIT_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

CALLS_STARTED = _counter(
    "grpc_server_started_total", "Calls that the server has started.", *CALL_LABELS
)
CALLS_HANDLED = _counter(
    "grpc_server_handled_total",
    "Calls that the server has completed, by their gRPC status code.",
    *CALL_LABELS,
    "grpc_code",
)
CALL_SECONDS = _histogram(
    "grpc_server_handling_seconds",
    "Time from the start of a call to its end, of a stream to its last message.",
    *CALL_LABELS,
    buckets=CALL_BUCKETS,
)
MESSAGES_RECEIVED = _counter(
    "grpc_server_msg_received_total", "Request messages received.", *CALL_LABELS
)
MESSAGES_SENT = _counter(
    "grpc_server_msg_sent_total", "Response messages sent.", *CALL_LABELS
)
HTTP_SECONDS = _histogram(
    "http_server_request_duration_seconds",
    "Time from the headers of an HTTP request to the end of its response.",
    "http_request_method",
    "http_route",
    "http_response_status_code",
    buckets=HTTP_BUCKETS,
)
POOL_CONNECTIONS = _gauge(
    "academy_database_pool_connections",
    "Connections of the Postgres pool, by state: in_use or idle.",
    "state",
    merge=Merge.SUM,
)
POOL_WAITING = _gauge(
    "academy_database_pool_waiting",
    "Callers that wait for a connection of the Postgres pool.",
    merge=Merge.SUM,
)
REPLICA_LAG = _gauge(
    "academy_database_replica_lag_seconds",
    "Time since the last moment whose changes the replica all has; it is measured once "
    "a second, and is 1 to 2 s for a replica that is not behind.",
    merge=Merge.MAX,
)
POOL_TIMEOUTS = _counter(
    "academy_database_pool_timeouts_total",
    "Callers that got no connection of the Postgres pool in time.",
)
HASHING_QUEUE = _gauge(
    "academy_hashing_queue_length",
    "Passwords that wait to be hashed or verified.",
    merge=Merge.SUM,
)
HASHING_WAIT = _histogram(
    "academy_hashing_wait_seconds",
    "Time that a password waited to be hashed or verified.",
    buckets=WAIT_BUCKETS,
)
HASHING_REFUSED = _counter(
    "academy_hashing_refused_total",
    "Passwords not hashed or verified because too many wait.",
)
CACHE_REQUESTS = _counter(
    "academy_cache_requests_total",
    "Look-ups of users in a cache, by level (process, redis) and result (hit, miss).",
    "level",
    "result",
)
RATE_LIMITED = _counter(
    "academy_rate_limited_total", "Calls refused by a rate limit.", "grpc_method"
)
OUTBOX_LAG = _gauge(
    "academy_outbox_lag_seconds",
    "Age of the oldest outbox entry that is not delivered; 0 if there is none.",
    merge=Merge.MAX,
)
OUTBOX_ENTRIES = _gauge(
    "academy_outbox_entries",
    "Outbox entries that are not delivered, by state: pending or dead.",
    "state",
    merge=Merge.MAX,
)
MAILS = _counter(
    "academy_mails_total",
    "Attempts to deliver an e-mail, by outcome: delivered, dropped (no longer needed), "
    "retried, dead, or unavailable (no connection to the mail server).",
    "outcome",
)
STREAM_SUBSCRIBERS = _gauge(
    "academy_stream_subscribers",
    "Streams that are open.",
    "grpc_method",
    merge=Merge.SUM,
)
EVENT_LOOP_LAG = _histogram(
    "academy_event_loop_lag_seconds",
    "How late the event loop wakes up a task whose sleep has ended.",
    buckets=WAIT_BUCKETS,
)
BACKGROUND_RESTARTS = _counter(
    "academy_background_restarts_total",
    "Restarts of background tasks that failed.",
    "task",
)
DEGRADED = _gauge(
    "academy_degraded",
    "1 if the last use of a dependency (postgres, redis, smtp) failed, or if the "
    "replica is not read; otherwise 0.",
    "dependency",
    merge=Merge.MAX,
)
SIGNING_KEY_AGE = _gauge(
    "academy_signing_key_age_seconds",
    "Age of the key that signs access tokens.",
    merge=Merge.MAX,
)
WORKERS = _gauge(
    "academy_workers",
    "Worker processes of a supervisor, by state: configured or responding.",
    "state",
    merge=Merge.SUM,
)
TLS_HANDSHAKES = _counter(
    "academy_tls_handshakes_total",
    "gRPC connections that began a TLS handshake, successful or not.",
)
CALLING_CONNECTIONS = _counter(
    "academy_grpc_connections_with_calls_total",
    "gRPC connections that made at least one call.",
)
CERTIFICATES_REFUSED = _counter(
    "academy_client_certificates_refused_total",
    "Calls whose client certificate does not match a valid service key.",
)
CERTIFICATE_EXPIRY = _gauge(
    "academy_tls_certificate_expiry_timestamp_seconds",
    "When the first certificate of the process expires, in seconds since 1970.",
    merge=Merge.MIN,
)
CERTIFICATE_RENEWAL = _gauge(
    "academy_tls_certificate_renewal_timestamp_seconds",
    "When a certificate of the process is due for renewal, in seconds since 1970.",
    merge=Merge.MIN,
)
BUILD_INFO = _gauge(
    "academy_build_info",
    "Always 1; the labels contain the release and the version of Python.",
    "version",
    "python_version",
    merge=Merge.MAX,
)

DEFINITIONS = {
    definition.name: definition
    for definition in tuple(globals().values())
    if isinstance(definition, Definition)
}
