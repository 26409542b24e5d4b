"""Compares the calls of two services, in rounds that alternate, on all cores."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, Protocol

import httpx

from tests.load.loader import ROOT, as_file, cpu_seconds, read_h2load
from tests.load.peers.client import Plan, Result
from tests.load.row import ResultRow

ROUNDS = 7
SECONDS = 2.0  # of each half round
CONNECTIONS = 32  # of reads
CALLERS = 16  # of writes
WARM_UP_READS, WARM_UP_WRITES = 1_000, CALLERS
MAX_SIZE_DIFFERENCE = 64  # bytes, between answers to the same kind of write


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table; theirs and ours are calls per second or CPU per call."""

    peer: str
    name: str
    theirs: str
    ours: str
    ratio: float
    bar: float
    notes: str
    better: Literal["higher", "lower"] = "higher"

    @property
    def result(self) -> ResultRow:
        """The row for the results of all benchmarks."""
        notes = f"theirs {self.theirs}, ours {self.ours}; {self.notes}"
        name = f"{self.peer}: {self.name}"
        return ResultRow(name, self.ratio, self.bar, self.better, notes=notes)


class Work(Protocol):
    """Calls of one kind."""

    def make(self, calls: int) -> float:
        """Make a number of calls; return the seconds. Raises if an answer is wrong."""

    @property
    def warm_up_calls(self) -> int:
        """How many calls measure the rate roughly."""


@dataclass(frozen=True, slots=True)
class Read:
    """A GET, or a POST of a body, that is answered with the same bytes each time.

    A list has a field as often as it has items.
    """

    url: str
    headers: Mapping[str, str]
    body: bytes = b""
    field: str = ""
    items: int = 0
    warm_up_calls: int = WARM_UP_READS

    def make(self, calls: int) -> float:
        """Send the calls by h2load; check every status and the sizes."""
        command = ["h2load", "--h1", "-c", str(CONNECTIONS), "-n", str(calls)]
        for header in self.headers.items():
            command += ["-H", ": ".join(header)]
        size = self._size()
        with as_file(self.body) as path:
            data = ["-d", path] if self.body else []
            output = _run([*command, *data, self.url])
        seconds, received = read_h2load(output, calls, 0)
        if received != calls * size:
            raise RuntimeError(f"{self.url}: not every answer has {size} bytes")
        return seconds

    def _size(self) -> int:
        """Return the size of the present answer, after a look at it."""
        plain = {**self.headers, "accept-encoding": "identity"}
        method = "POST" if self.body else "GET"
        answer = httpx.request(
            method, self.url, headers=plain, content=self.body, timeout=30
        ).raise_for_status()
        if self.field and answer.text.count(f'"{self.field}":') != self.items:
            raise RuntimeError(f"{self.url}: not {self.items} items")
        return len(answer.content)


@dataclass(slots=True)
class Write:
    """A POST whose body or token differs each time."""

    plan: Plan
    warm_up_calls: int = WARM_UP_WRITES

    def make(self, calls: int) -> float:
        """Send the calls by tests/load/peers/client.py, which checks every answer."""
        plan = replace(self.plan, calls=calls)
        command = [sys.executable, "-m", "tests.load.peers.client"]
        result = Result(**json.loads(_run(command, json.dumps(asdict(plan)))))
        if result.largest - result.smallest > MAX_SIZE_DIFFERENCE:
            raise RuntimeError(f"{plan.path}: the sizes of the answers differ")
        self.plan = replace(
            plan, tokens=result.tokens, first_number=plan.first_number + calls
        )
        return result.seconds


@dataclass(frozen=True, slots=True)
class Service:
    """A running service, its processes that serve, and the calls to compare by name."""

    name: str
    about: str  # its version and how it hashes passwords
    processes: Sequence[int]
    works: Mapping[str, Work]


@dataclass(frozen=True, slots=True)
class Bar:
    """What a ratio, ours to theirs, has to reach; `cpu` at most for CPU per call."""

    rate: float
    cpu: float | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """What a half round measured, or the medians of several."""

    per_second: float
    cpu: float  # microseconds per call


def compare(theirs: Service, ours: Service, bars: Mapping[str, Bar]) -> Iterator[Row]:
    """Compare the calls that have a bar, one kind after the other."""
    for name, bar in bars.items():
        load = os.getloadavg()[0]
        rounds = _rounds((theirs, theirs.works[name]), (ours, ours.works[name]))
        yield from _rows(theirs, name, bar, rounds, f"{theirs.about}; load {load:.0f}")


def _rounds(*sides: tuple[Service, Work]) -> list[list[Sample]]:
    """Measure both sides in each round, in reverse order every other round."""
    plans = [(*side, _half_round(side[1])) for side in sides]
    rounds = []
    for number in range(ROUNDS):
        order = -1 if number % 2 else 1
        rounds.append([_sample(*plan) for plan in plans[::order]][::order])
    return rounds


def _half_round(work: Work) -> int:
    """Return how many calls take SECONDS, after a warm-up."""
    work.make(work.warm_up_calls)
    seconds = work.make(work.warm_up_calls)
    return max(work.warm_up_calls, int(work.warm_up_calls / seconds * SECONDS))


def _sample(service: Service, work: Work, calls: int) -> Sample:
    before = sum(map(cpu_seconds, service.processes))
    seconds = work.make(calls)
    cpu = sum(map(cpu_seconds, service.processes)) - before
    return Sample(calls / seconds, cpu / calls * 1e6)


def _rows(
    theirs: Service, name: str, bar: Bar, rounds: list[list[Sample]], notes: str
) -> Iterator[Row]:
    # Both halves of a round ran under the same load, so each round has its own ratio.
    rate = statistics.median(o.per_second / t.per_second for t, o in rounds)
    cpu = statistics.median(o.cpu / t.cpu for t, o in rounds)
    peer, own = (_median(samples) for samples in zip(*rounds, strict=True))
    cpus = f"{peer.cpu:,.0f} us", f"{own.cpu:,.0f} us"
    rates = f"{peer.per_second:,.0f}/s", f"{own.per_second:,.0f}/s"
    notes = f"CPU per call {' / '.join(cpus)}; {notes}"
    yield Row(theirs.name, name, *rates, rate, bar.rate, notes)
    if bar.cpu:
        name = f"{name}, CPU per call"
        yield Row(theirs.name, name, *cpus, cpu, bar.cpu, notes, "lower")


def _median(samples: Sequence[Sample]) -> Sample:
    return Sample(
        statistics.median(s.per_second for s in samples),
        statistics.median(s.cpu for s in samples),
    )


def _run(command: Sequence[str], text: str = "") -> str:
    result = subprocess.run(
        command,
        cwd=ROOT,
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if result.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{result.stdout}{result.stderr}")
    return result.stdout
