"""Situations of a service as series: a healthy one, and what each fault changes."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tests.deploy.promql import Samples

ONE = {"job": "academy", "instance": "10.0.0.1:9464"}
TWO = {"job": "academy", "instance": "10.0.0.2:9464"}
CALL = {
    "grpc_type": "unary",
    "grpc_service": "blatam.user.v1.UserService",
    "grpc_method": "GetUser",
    "transport": "grpc",
}
Key = tuple[str, frozenset[tuple[str, str]]]


@dataclass(frozen=True, slots=True)
class Line:
    """The values of a series: a start and a growth per second; None is no series."""

    start: float | None
    per_second: float = 0.0


def gauge(value: float) -> Line:
    return Line(value)


def counter(per_second: float) -> Line:
    return Line(1000.0, per_second)


MISSING = Line(None)


def series(name: str, **labels: str) -> Key:
    """Return the key of a series of the first process."""
    return name, frozenset({**ONE, **labels}.items())


def histogram(
    name: str, per_second: Mapping[str, float], mean: float, **labels: str
) -> dict[Key, Line]:
    """Return the lines of a histogram by the rates of its cumulative buckets."""
    count = per_second["+Inf"]
    return {
        **{
            series(f"{name}_bucket", le=bound, **labels): counter(rate)
            for bound, rate in per_second.items()
        },
        series(f"{name}_count", **labels): counter(count),
        series(f"{name}_sum", **labels): counter(count * mean),
    }


HANDLED = "grpc_server_handled_total"
CERTIFICATE_EXPIRY = "academy_tls_certificate_expiry_timestamp_seconds"
CERTIFICATE_RENEWAL = "academy_tls_certificate_renewal_timestamp_seconds"
HEALTHY: dict[Key, Line] = {
    series("up"): gauge(1),
    ("up", frozenset(TWO.items())): gauge(1),
    series("academy_build_info", version="1", python_version="3.11"): gauge(1),
    ("academy_build_info", frozenset({**TWO, "version": "1"}.items())): gauge(1),
    series(HANDLED, grpc_code="OK", **CALL): counter(100),
    series(HANDLED, grpc_code="NOT_FOUND", **CALL): counter(20),
    series(HANDLED, grpc_code="RESOURCE_EXHAUSTED", **CALL): counter(1),
    series(HANDLED, grpc_code="UNAVAILABLE", **CALL): counter(0),
    **histogram(
        "grpc_server_handling_seconds",
        {"0.01": 119, "0.5": 121, "1.0": 121, "+Inf": 121},
        0.002,
        **CALL,
    ),
    series("academy_degraded", dependency="postgres"): gauge(0),
    series("academy_degraded", dependency="redis"): gauge(0),
    series("academy_degraded", dependency="smtp"): gauge(0),
    series("academy_degraded", dependency="replica"): gauge(0),
    series("academy_database_pool_timeouts_total"): counter(0),
    series("academy_hashing_refused_total"): counter(0),
    series("academy_mails_total", outcome="delivered"): counter(1),
    series("academy_mails_total", outcome="unavailable"): counter(0),
    series("academy_outbox_lag_seconds"): gauge(1),
    series("academy_outbox_entries", state="pending"): gauge(3),
    series("academy_outbox_entries", state="dead"): gauge(0),
    series("academy_rate_limited_total", grpc_method="GetUser"): counter(1),
    series("academy_background_restarts_total", task="users"): counter(0),
    series("academy_signing_key_age_seconds"): gauge(30 * 86_400),
    series("academy_workers", state="configured"): gauge(2),
    series("academy_workers", state="responding"): gauge(2),
    series(CERTIFICATE_EXPIRY): gauge(60 * 86_400),  # the time begins at 0
    series(CERTIFICATE_RENEWAL): gauge(46 * 86_400),
    **histogram(
        "academy_event_loop_lag_seconds",
        {"0.1": 9.9, "0.25": 9.99, "+Inf": 10},
        0.002,
    ),
}
ERRORS = {series(HANDLED, grpc_code="UNAVAILABLE", **CALL): counter(50)}
SLOW = histogram(
    "grpc_server_handling_seconds",
    {"0.01": 60, "0.5": 70, "1.0": 121, "+Inf": 121},
    0.5,
    **CALL,
)
RESTARTS = {series("academy_background_restarts_total", task="users"): counter(1)}
LATE_LOOP = histogram(
    "academy_event_loop_lag_seconds", {"0.1": 3, "0.25": 3, "+Inf": 4}, 0.15
)
POSTGRES = {series("academy_degraded", dependency="postgres"): gauge(1)}

# For each alert what differs from the healthy service, with the consequences of the
# fault for other metrics: they must not send an alert of their own.
SITUATIONS: Mapping[str, Mapping[Key, Line]] = {
    "AcademyDown": dict.fromkeys(HEALTHY, MISSING),
    "AcademyProcessDown": {("up", frozenset(TWO.items())): gauge(0)},
    "AcademyMetricsMissing": {
        ("academy_build_info", frozenset({**TWO, "version": "1"}.items())): MISSING
    },
    "AcademyErrors": ERRORS,
    "AcademySlow": SLOW,
    "AcademyRateLimiting": {
        series("academy_rate_limited_total", grpc_method="Login"): counter(40)
    },
    "AcademyPostgresUnavailable": {
        **POSTGRES,
        **ERRORS,
        **SLOW,
        **RESTARTS,
        series("academy_database_pool_timeouts_total"): counter(50),
        series("academy_outbox_lag_seconds"): gauge(900),
        series("academy_degraded", dependency="replica"): gauge(1),
    },
    "AcademyDatabasePoolExhausted": {
        **ERRORS,
        **SLOW,
        series("academy_database_pool_timeouts_total"): counter(50),
    },
    "AcademyReplicaUnavailable": {
        series("academy_degraded", dependency="replica"): gauge(1),
    },
    "AcademyRedisUnavailable": {
        **RESTARTS,
        series("academy_degraded", dependency="redis"): gauge(1),
    },
    "AcademyMailServerUnavailable": {
        series("academy_degraded", dependency="smtp"): gauge(1),
        series("academy_mails_total", outcome="delivered"): counter(0),
        series("academy_mails_total", outcome="unavailable"): counter(1 / 30),
        series("academy_outbox_lag_seconds"): gauge(900),
    },
    "AcademyOutboxLagging": {series("academy_outbox_lag_seconds"): gauge(900)},
    "AcademyDeadLetters": {series("academy_outbox_entries", state="dead"): gauge(1)},
    "AcademyHashingOverloaded": {
        **ERRORS,
        **SLOW,
        **LATE_LOOP,
        series(HANDLED, grpc_code="RESOURCE_EXHAUSTED", **CALL): counter(20),
        series("academy_hashing_refused_total"): counter(20),
        series("academy_database_pool_timeouts_total"): counter(15),
    },
    "AcademyEventLoopBlocked": {
        **ERRORS,
        **SLOW,
        **LATE_LOOP,
        series("academy_database_pool_timeouts_total"): counter(15),
    },
    "AcademyBackgroundTaskFailing": RESTARTS,
    "AcademySigningKeyOld": {
        series("academy_signing_key_age_seconds"): gauge(120 * 86_400)
    },
    "AcademyWorkerNotResponding": {
        series("academy_workers", state="responding"): gauge(1)
    },
    "AcademyCertificateExpires": {
        series(CERTIFICATE_EXPIRY): gauge(13 * 86_400),
        series(CERTIFICATE_RENEWAL): gauge(-86_400),
    },
}


def samples_of(
    phases: Iterable[tuple[Mapping[Key, Line], float]], step: float
) -> tuple[Samples, list[float]]:
    """Return samples of phases that last so many seconds, and the times of all."""
    samples = Samples()
    times: list[float] = []
    grown: defaultdict[Key, float] = defaultdict(float)
    for lines, seconds in phases:
        for _ in range(int(seconds / step)):
            at = times[-1] + step if times else 0.0
            times.append(at)
            for key, line in lines.items():
                if line.start is None:
                    continue
                grown[key] += line.per_second * step
                name, labels = key
                samples.add(at, name, line.start + grown[key], **dict(labels))
    return samples, times
