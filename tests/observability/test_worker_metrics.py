"""Metrics of several processes: sums are exact, and never decrease."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from server.composition.listeners.metrics import listening_metrics
from server.observability.metrics import definitions
from server.observability.metrics.calls import CallLabels, CallMetrics
from server.observability.metrics.exposition import (
    histogram,
    number,
    numbers_by,
    render,
)
from server.observability.metrics.histogram import Histogram
from server.observability.metrics.merging import counts_only, merge_expositions
from server.observability.metrics.process import ProcessMetrics
from server.observability.metrics.workers import WorkerFiles, WorkerMetrics
from tests.metrics import Scrape

ROOT = Path(__file__).parents[2]
LABELS = CallLabels("unary", "t.Service", "Get")
STARTED = "grpc_server_started_total"
HANDLED = "grpc_server_handled_total"
CALLS = 1_000


def exposition(mails: int, waiting: int, degraded: int, *lags: float) -> bytes:
    """Return the metrics of one process."""
    loop_lag = Histogram(definitions.EVENT_LOOP_LAG.buckets)
    for lag in lags:
        loop_lag.observe(lag)
    return render(
        [
            numbers_by(definitions.MAILS, {"delivered": mails}),
            number(definitions.POOL_WAITING, waiting),
            numbers_by(definitions.DEGRADED, {"redis": degraded}),
            histogram(definitions.EVENT_LOOP_LAG, loop_lag),
        ]
    )


def test_merge_sums_counts_and_follows_the_rule_of_each_gauge() -> None:
    merged = Scrape(
        merge_expositions(
            [exposition(2, 1, 0, 0.003), exposition(3, 4, 1, 0.003, 7.0), b""]
        )
    )
    assert merged.total("academy_mails_total", outcome="delivered") == 5
    assert merged.total("academy_database_pool_waiting") == 5
    assert merged.total("academy_degraded", dependency="redis") == 1
    lag = "academy_event_loop_lag_seconds"
    assert merged.total(f"{lag}_bucket", le="0.005") == 2
    assert merged.total(f"{lag}_bucket", le="+Inf") == 3
    assert merged.total(f"{lag}_count") == 3
    assert merged.total(f"{lag}_sum") == 7.006


def test_merge_keeps_the_earliest_expiry_of_a_certificate() -> None:
    """Workers may have read different files: the first one to expire counts."""
    texts = [
        render(
            [
                number(definitions.CERTIFICATE_EXPIRY, expiry),
                number(definitions.CERTIFICATE_RENEWAL, expiry - 5),
            ]
        )
        for expiry in (30.0, 20.0, 40.0)
    ]
    merged = Scrape(merge_expositions(texts))
    assert merged.total(definitions.CERTIFICATE_EXPIRY.name) == 20
    assert merged.total(definitions.CERTIFICATE_RENEWAL.name) == 15


def test_exposition_is_read_as_prometheus_reads_it() -> None:
    """Characters with a meaning in the format are escaped."""
    name = 'a\\b"c\n{d="e"} 1'
    (sample,) = Scrape(render([numbers_by(definitions.MAILS, {name: 0.5})])).samples
    assert (sample.labels, sample.value) == ({"outcome": name}, 0.5)


def test_merge_of_one_exposition_changes_nothing() -> None:
    text = exposition(2, 1, 0, 0.003)
    assert merge_expositions([text]) == text


def test_counts_of_an_ended_process_are_kept_without_its_gauges() -> None:
    kept = Scrape(counts_only(exposition(2, 1, 1, 0.003)))
    assert {family for family, _ in kept.series} == {
        "academy_mails_total",
        *(f"academy_event_loop_lag_seconds_{s}" for s in ("bucket", "sum", "count")),
    }


PROGRAM = """
import os, sys
from pathlib import Path
from server.observability.metrics.calls import CallLabels, CallMetrics
calls = CallMetrics.of([CallLabels("unary", "t.Service", "Get")], Path(sys.argv[1]))
counts = calls.of_method(CallLabels("unary", "t.Service", "Get"))["grpc"]
for _ in range(int(sys.argv[2])):
    counts.start()
    counts.send()
    counts.end(0, 0.002)
counts.start()
counts.open_stream()
print("counted", flush=True)
sys.stdin.read()
"""


def test_call_counts_survive_sigkill(tmp_path: Path) -> None:
    """The file has every call of the process, and is in use until it has ended."""
    files = WorkerFiles.new(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(files.call_counts), str(CALLS)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout
        process.stdout.readline()
        worker = WorkerMetrics(tmp_path, 2)
        running = Scrape(asyncio.run(worker.render()))
        assert running.total(STARTED) == CALLS + 1
        process.send_signal(signal.SIGKILL)
        process.wait()
    for _ in range(2):  # the second time they are no longer in a file
        ended = Scrape(asyncio.run(worker.render()))
        assert ended.total(STARTED, grpc_method="Get") == CALLS + 1
        assert ended.total(HANDLED, grpc_code="OK") == CALLS
        seconds = "grpc_server_handling_seconds"
        assert ended.total(f"{seconds}_bucket", le="0.0025") == CALLS
        assert ended.total(f"{seconds}_count") == CALLS
        assert not list(tmp_path.iterdir())


def test_final_counts_of_a_drained_worker_are_kept(tmp_path: Path) -> None:
    """Also those that no scrape has seen, once, and without its gauges."""
    files = WorkerFiles.new(tmp_path)
    program = (
        "import sys; from pathlib import Path; from server.observability.metrics"
        " import call_file; call_file.create(Path(sys.argv[1]), [], 0)"
    )
    command = [sys.executable, "-c", program, str(files.call_counts)]
    subprocess.run(command, cwd=ROOT, check=True)
    files.write_final(exposition(2, 1, 1, 0.003))
    worker = WorkerMetrics(tmp_path, 2)
    for _ in range(2):
        ended = Scrape(asyncio.run(worker.render()))
        assert ended.total("academy_mails_total", outcome="delivered") == 2
        assert ended.total("academy_event_loop_lag_seconds_count") == 1
        assert "academy_degraded" not in {family for family, _ in ended.series}
        assert not list(tmp_path.iterdir())


class Worker:
    """A worker's metrics, in this process."""

    def __init__(self, folder: Path) -> None:
        self.files = WorkerFiles.new(folder)
        self.metrics = ProcessMetrics(CallMetrics.of([LABELS], self.files.call_counts))
        self.responding = asyncio.Event()
        self.responding.set()

    def call(self) -> None:
        counts = self.metrics.calls.of_method(LABELS)["grpc"]
        counts.start()
        counts.end(0, 0.001)

    async def render(self) -> bytes:
        await self.responding.wait()
        return render(self.metrics.families())

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        async with listening_metrics(self.files.address, self.render):
            yield


async def test_worker_metrics_count_each_call_of_each_worker_once(
    tmp_path: Path,
) -> None:
    """A worker that hangs is counted to the call, and never takes counts away."""
    first, second = Worker(tmp_path), Worker(tmp_path)
    merged = WorkerMetrics(tmp_path, 2)
    async with first.listening(), second.listening():
        first.metrics.mails["delivered"] += 2
        for worker in (first, second, second):
            worker.call()
        scrape = Scrape(await merged.render())
        assert scrape.total(STARTED) == scrape.total(HANDLED) == 3
        assert scrape.total("academy_mails_total") == 2
        assert scrape.total("academy_build_info") == 1
        assert scrape.total("academy_workers", state="responding") == 2
        first.responding.clear()
        first.call()
        async with asyncio.timeout(5):
            scrape = Scrape(await merged.render())
        first.responding.set()
        assert scrape.total(STARTED) == 4
        assert scrape.total("academy_workers", state="configured") == 2
        assert scrape.total("academy_workers", state="responding") == 1
        assert scrape.total("academy_mails_total") == 2
