"""`academy top`: what it computes from two scrapes, and how it ends."""

import signal
from collections.abc import Iterable, Iterator

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from server.cli.monitoring.faults import faults
from server.cli.monitoring.frame import frame
from server.cli.monitoring.samples import Interval, Scrape, quantile_of
from server.cli.monitoring.top import top
from tests.cli.metrics_listener import metrics_listener

METHOD = 'grpc_service="blatam.user.v1.UserService",grpc_method="GetUser"'


def exposition(
    calls: int = 0, errors: int = 0, buckets: Iterable[tuple[str, int]] = ()
) -> str:
    handled, seconds = "grpc_server_handled_total", "grpc_server_handling_seconds"
    lines = [
        f"# TYPE {handled} counter",
        f'{handled}{{{METHOD},transport="grpc",grpc_code="OK"}} {calls}',
        f'{handled}{{{METHOD},transport="rest",grpc_code="NOT_FOUND"}} {errors}',
        f"# TYPE {seconds} histogram",
        *(f'{seconds}_bucket{{{METHOD},le="{le}"}} {n}' for le, n in buckets),
    ]
    return "\n".join(lines) + "\n"


def interval(earlier: str, later: str, seconds: float = 2.0) -> Interval:
    return Interval(Scrape.parse(earlier, 10.0), Scrape.parse(later, 10.0 + seconds))


def displayed(figures: Interval, width: int = 100) -> str:
    console = Console(width=width, record=True, quiet=True)
    with console.capture() as capture:
        console.quiet = False
        console.print(frame(figures, "127.0.0.1:9464"))
    return capture.get()


def test_frame_shows_rates_latency_and_errors_of_the_interval() -> None:
    """Only what happened between the two scrapes counts, over all transports."""
    buckets = [("0.001", 50), ("0.01", 100), ("+Inf", 100)]
    later = [("0.001", 50), ("0.01", 140), ("+Inf", 140)]
    figures = interval(exposition(100, 0, buckets), exposition(130, 10, later))
    (row,) = [line for line in displayed(figures).splitlines() if "GetUser" in line]
    assert row.split() == ["UserService/GetUser", "20.0", "5.5", "9.9", "5.0"]
    assert "NOT_FOUND 5.0/s" in displayed(figures)


def test_counter_reset_counts_from_zero() -> None:
    """A restarted process begins with 0; the rate is never negative."""
    figures = interval(exposition(1000), exposition(30))
    assert figures.increase("grpc_server_handled_total") == 30


def test_frame_shows_requests_that_are_no_calls() -> None:
    """As those of `academy edge`, or of unknown paths."""
    seconds = "http_server_request_duration_seconds"
    text = "".join(
        f'{seconds}_count{{http_response_status_code="{status}"}} {count}\n'
        for status, count in ((404, 6), (503, 2))
    )
    assert "4.0 requests/s, p99 - ms, 1.0 5xx/s" in displayed(interval("", text))


@pytest.mark.parametrize("width", [20, 40, 200])
@pytest.mark.parametrize("text", ["", "# TYPE other gauge\nother 1\n"])
def test_frame_renders_without_metrics(text: str, width: int) -> None:
    frame_text = displayed(interval(text, text), width)
    assert "no faults" in frame_text
    assert max(map(len, frame_text.splitlines())) <= width


def test_quantile_interpolates_within_its_bucket() -> None:
    buckets = [(0.1, 0.0), (0.2, 10.0), (float("inf"), 10.0)]
    assert quantile_of(0.5, buckets) == pytest.approx(0.15)
    assert quantile_of(0.99, [(0.1, 0.0), (float("inf"), 5.0)]) == 0.1
    assert quantile_of(0.5, [(0.1, 0.0)]) is None


def test_no_fault_is_reported_for_old_observations() -> None:
    """A block of the event loop an hour ago is not a fault now."""
    lag = "academy_event_loop_lag_seconds_bucket"
    text = f'{lag}{{le="0.25"}} 10\n{lag}{{le="+Inf"}} 14\n'
    assert faults(interval(text, text)) == []
    assert [f.component for f in faults(interval("", text))] == ["event loop"]


def test_event_loop_is_faulty_as_the_alert_says() -> None:
    """One late wake-up is no fault, unless all are late by 20 ms on average."""
    lag = "academy_event_loop_lag_seconds"
    text = (
        f'{lag}_bucket{{le="0.25"}} 17\n{lag}_bucket{{le="+Inf"}} 18\n{lag}_count 18\n'
    )
    assert faults(interval("", f"{text}{lag}_sum 0.3\n")) == []
    (fault,) = faults(interval("", f"{text}{lag}_sum 0.54\n"))
    assert fault.problem == (
        "blocked 1 times for more than 0.25 s, late by 30 ms on average"
    )


def test_consequences_of_a_fault_are_no_faults() -> None:
    """A flood of log-ins takes the CPU from the event loop and fills the pool."""
    lag = "academy_event_loop_lag_seconds_bucket"
    text = "academy_database_pool_timeouts_total 3\n"
    assert [f.component for f in faults(interval("", text))] == ["database pool"]
    text += f'{lag}{{le="0.25"}} 10\n{lag}{{le="+Inf"}} 14\n'
    assert [f.component for f in faults(interval("", text))] == ["event loop"]
    text += "academy_hashing_refused_total 9\n"
    assert [f.component for f in faults(interval("", text))] == ["hashing"]


app = typer.Typer()
app.command()(top)
runner = CliRunner()


def test_top_once_prints_one_frame() -> None:
    with metrics_listener([exposition(0), exposition(5)]) as address:
        result = runner.invoke(
            app, ["--once", "--interval", "0.1", "--address", address]
        )
    assert result.exit_code == 0, result.output
    assert "UserService/GetUser" in result.output
    assert result.output.count("calls/s over") == 1


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        ("a 1\n", 404, "HTTP status 404"),
        ("<html>\n", 200, "is not in the Prometheus text format"),
    ],
)
def test_top_exits_1_without_metrics(text: str, status: int, message: str) -> None:
    with metrics_listener([text], status) as address:
        result = runner.invoke(app, ["--once", "--address", address])
    assert result.exit_code == 1
    assert message in result.output


def test_top_exits_1_if_nothing_answers() -> None:
    result = runner.invoke(app, ["--address", "127.0.0.1:1"])
    assert result.exit_code == 1
    assert "127.0.0.1:1" in result.output


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Handle SIGINT as a terminal's programs do: a parent may have ignored it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("env", [{}, {"FORCE_COLOR": "1"}], ids=["pipe", "terminal"])
def test_top_survives_a_missing_answer_and_ends_with_interrupt(
    env: dict[str, str],
) -> None:
    """While it runs, an unreadable answer is one line; Ctrl-C ends it with 0."""
    texts = [exposition(0), "<html>\n", exposition(5), exposition(6)]

    def interrupt() -> None:
        signal.raise_signal(signal.SIGINT)

    with metrics_listener(texts, on_last=interrupt) as address:
        arguments = ["--interval", "0.1", "--address", address]
        result = runner.invoke(app, arguments, env=env, color=True)
    assert result.exit_code == 0
    assert "FAULT metrics: 127.0.0.1" in result.output
    assert "calls/s over" in result.output
    assert ("\x1b[?1049l" in result.output) is bool(env), "the screen is restored"
