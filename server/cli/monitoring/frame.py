"""One frame of `academy top`: faults, calls by method, and the state of each part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from server.cli.monitoring.faults import faults
from server.cli.monitoring.samples import Interval

CALLS = "grpc_server_handled_total"
LATENCY = "grpc_server_handling_seconds"
REQUESTS = "http_server_request_duration_seconds"
MAX_METHODS = 20


def frame(interval: Interval, address: str, max_methods: int = MAX_METHODS) -> Group:
    """Return what to display for an interval."""
    rate = interval.rate(CALLS)
    heading = f"{address}   {rate:.1f} calls/s over {interval.seconds:.1f} s"
    return Group(
        Text(heading, style="bold"),
        *_fault_lines(interval),
        Text(""),
        _methods(interval, max_methods),
        Text(""),
        _state(interval),
    )


def _fault_lines(interval: Interval) -> list[RenderableType]:
    lines: list[RenderableType] = [
        Text(f"FAULT {fault.component}: {fault.problem} -> {fault.advice}", "bold red")
        for fault in faults(interval)
    ]
    return lines or [Text("no faults", "green")]


def _methods(interval: Interval, max_methods: int) -> Table:
    """Return the busiest methods, with their rates and latency."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("method", no_wrap=True, overflow="ellipsis", min_width=8)
    for name in ("calls/s", "p50 ms", "p99 ms", "errors/s"):
        table.add_column(name, justify="right", no_wrap=True, min_width=len(name))
    calls = _calls_by_method(interval)
    busiest = sorted(calls.items(), key=lambda item: (-item[1], item[0]))
    for (service, method), count in busiest[:max_methods]:
        labels = {"grpc_service": service, "grpc_method": method}
        successes = interval.increase(CALLS, grpc_code="OK", **labels)
        table.add_row(
            f"{service.rpartition('.')[2]}/{method}",
            f"{count / interval.seconds:.1f}",
            _milliseconds(interval.quantile(0.5, LATENCY, **labels)),
            _milliseconds(interval.quantile(0.99, LATENCY, **labels)),
            f"{(count - successes) / interval.seconds:.1f}",
        )
    if not calls:
        table.add_row("(no calls)", *[""] * 4)
    return table


def _calls_by_method(interval: Interval) -> dict[tuple[str, str], float]:
    return {
        (service, method): count
        for service in interval.label_values(CALLS, "grpc_service")
        for method, count in interval.increases_by(
            "grpc_method", CALLS, grpc_service=service
        ).items()
    }


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f}"


def _state(interval: Interval) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, text in _state_rows(interval):
        table.add_row(name, text)
    return table


def _state_rows(interval: Interval) -> Iterator[tuple[str, str]]:
    seconds = interval.seconds
    errors = interval.increases_by("grpc_code", CALLS)
    errors.pop("OK", None)
    yield "errors", _rates(errors, seconds)
    yield "http", _http(interval)
    yield "postgres pool", _pool(interval)
    yield "hashing", _hashing(interval)
    yield "outbox", _outbox(interval)
    mails = interval.increases_by("outcome", "academy_mails_total")
    yield "mails", _rates(mails, seconds)
    lag = interval.quantile(0.99, "academy_event_loop_lag_seconds")
    yield "event loop", f"p99 lag {_milliseconds(lag)} ms"
    refused = interval.rate("academy_rate_limited_total")
    yield "rate limits", f"{refused:.1f} refused/s"
    restarts = interval.increases_by("task", "academy_background_restarts_total")
    yield "task restarts", _counts(restarts)


def _http(interval: Interval) -> str:
    """Return the figures of REST, which `academy edge` has, too."""
    statuses = interval.increases_by("http_response_status_code", f"{REQUESTS}_count")
    requests = sum(statuses.values()) / interval.seconds
    failed = sum(count for status, count in statuses.items() if status[:1] == "5")
    errors = failed / interval.seconds
    p99 = _milliseconds(interval.quantile(0.99, REQUESTS))
    return f"{requests:.1f} requests/s, p99 {p99} ms, {errors:.1f} 5xx/s"


def _pool(interval: Interval) -> str:
    connections = "academy_database_pool_connections"
    states = _gauges(interval, connections, "state")
    waiting = _number(interval.gauge("academy_database_pool_waiting"))
    timeouts = interval.rate("academy_database_pool_timeouts_total")
    return f"{_counts(states)}, {waiting} waiting, {timeouts:.1f} timeouts/s"


def _hashing(interval: Interval) -> str:
    queue = _number(interval.gauge("academy_hashing_queue_length"))
    wait = interval.quantile(0.99, "academy_hashing_wait_seconds")
    refused = interval.rate("academy_hashing_refused_total")
    return (
        f"{queue} waiting, p99 wait {_milliseconds(wait)} ms, {refused:.1f} refused/s"
    )


def _outbox(interval: Interval) -> str:
    lag = _number(interval.gauge("academy_outbox_lag_seconds"))
    entries = _gauges(interval, "academy_outbox_entries", "state")
    return f"{_counts(entries)}, lag {lag} s"


def _gauges(interval: Interval, name: str, label: str) -> dict[str, float]:
    return {
        value: interval.gauge(name, **{label: value}) or 0.0
        for value in interval.label_values(name, label)
    }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _counts(values: Mapping[str, float]) -> str:
    return ", ".join(f"{value:.0f} {name}" for name, value in values.items()) or "-"


def _rates(increases: Mapping[str, float], seconds: float) -> str:
    ordered = sorted(increases.items(), key=lambda item: -item[1])
    return (
        ", ".join(f"{name} {value / seconds:.1f}/s" for name, value in ordered) or "-"
    )
