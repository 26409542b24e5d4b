"""Servers under load, one core for them and one for the loader; knows no service.

What counts is the ratio of CPU per request: absolute figures move from run to run,
and requests/s also with whatever else the machine does. Rounds are interleaved, so
that a slow minute hits every target alike.
"""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONNECTIONS, STREAMS = 4, 16
WARM_UP_REQUESTS = 2_000
SECONDS = 0.4  # of each half round: many short ones outlive a noisy neighbour
ROUNDS = 15
CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, LOADER_CORE = CORES[0], CORES[-1]
GRPC_HEADERS = {"content-type": "application/grpc", "te": "trailers"}


@dataclass(frozen=True, slots=True)
class Target:
    """Something to call: gRPC when there is a message, GET over HTTP/1.1 otherwise."""

    name: str
    process: int
    url: str
    answer_bytes: int
    message: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sample:
    """What one round, or the median of rounds, has shown."""

    per_second: float
    cpu_us: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Medians over the rounds; a ratio of 1 means that ours costs no more than bare."""

    bare: Sample
    ours: Sample
    cpu_ratio: float
    rate_ratio: float


@contextmanager
def serving(module: str, answer: Path) -> Iterator[tuple[int, int]]:
    """Run a peer of this folder on the server's core; give its process and port."""
    command = [sys.executable, "-m", module, str(answer)]
    with pinned(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        if not (port := server.stdout.readline()):
            raise RuntimeError(f"{module} did not start")
        yield server.pid, int(port)


@contextmanager
def pinned(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    stdout: int | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server on the server's core until the block ends."""
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        stdout=stdout,
        stderr=subprocess.STDOUT if env else None,
        preexec_fn=lambda: os.sched_setaffinity(0, {SERVER_CORE}),
    ) as server:
        try:
            yield server
        finally:
            server.terminate()
            server.wait(30)


@contextmanager
def aside(process: int) -> Iterator[None]:
    """Have a server on the loader's core for a while, behind what is measured."""

    def put(core: int) -> None:
        for thread in Path(f"/proc/{process}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {core})

    put(LOADER_CORE)
    try:
        yield
    finally:
        put(SERVER_CORE)


def compare(bare: Target, ours: Target, rounds: int = ROUNDS) -> Comparison:
    """Load the two in turn, `rounds` times; give the medians."""
    plans = [(target, int(_warm(target) * SECONDS)) for target in (bare, ours)]
    pairs = [_round(plans, turned=bool(number % 2)) for number in range(rounds)]
    # The two of one round saw the same machine, so each round has its own ratio.
    return Comparison(
        bare=_median([b for b, _ in pairs]),
        ours=_median([o for _, o in pairs]),
        cpu_ratio=statistics.median(b.cpu_us / o.cpu_us for b, o in pairs),
        rate_ratio=statistics.median(o.per_second / b.per_second for b, o in pairs),
    )


def _round(plans: list[tuple[Target, int]], *, turned: bool) -> tuple[Sample, Sample]:
    """Measure both, the second one first every other time."""
    samples = [measure(*plan) for plan in (reversed(plans) if turned else plans)]
    bare, ours = reversed(samples) if turned else samples
    return bare, ours


def measure(target: Target, requests: int) -> Sample:
    """Send `requests` and check every answer's status and size."""
    before = cpu_seconds(target.process)
    seconds, received = (_h2load if shutil.which("h2load") else _python)(
        target, requests
    )
    cpu = cpu_seconds(target.process) - before
    if received != requests * target.answer_bytes:
        # gRPC errors are HTTP 200: only their size tells.
        raise RuntimeError(
            f"{target.name}: {received} bytes for {requests} requests, "
            f"{target.answer_bytes} each were due"
        )
    return Sample(requests / seconds, cpu / requests * 1e6)


def cpu_seconds(process: int) -> float:
    """Give the CPU time of all threads of a process, in ns steps.

    This is clock_getcpuclockid(3) of the process; /proc/<pid>/stat says the same in
    steps of 10 ms.
    """
    return time.clock_gettime(~process << 3 | 2)


def _warm(target: Target) -> float:
    measure(target, WARM_UP_REQUESTS)
    return measure(target, WARM_UP_REQUESTS).per_second


def _median(samples: Sequence[Sample]) -> Sample:
    return Sample(
        statistics.median(s.per_second for s in samples),
        statistics.median(s.cpu_us for s in samples),
    )


def _run(command: Sequence[str], text: str = "") -> str:
    done = subprocess.run(
        command,
        cwd=ROOT,
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        preexec_fn=lambda: os.sched_setaffinity(0, {LOADER_CORE}),
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def _h2load(target: Target, requests: int) -> tuple[float, int]:
    """Give the seconds it took and the bytes of all bodies."""
    command = ["h2load", "-n", str(requests), *_shape(target)]
    for name, value in target.headers.items():
        command += ["-H", f"{name}: {value}"]
    if target.message is not None:
        for name, value in GRPC_HEADERS.items():
            command += ["-H", f"{name}: {value}"]
        framed = b"\0" + len(target.message).to_bytes(4) + target.message
        with _as_file(framed) as path:
            return _read_h2load(_run([*command, "-d", path, target.url]), requests, 5)
    return _read_h2load(_run([*command, target.url]), requests, 0)


def _shape(target: Target) -> list[str]:
    """Give as many callers at once either way; browsers do not pipeline HTTP/1.1."""
    if target.message is not None:
        return ["-c", str(CONNECTIONS), "-m", str(STREAMS)]
    return ["--h1", "-c", str(CONNECTIONS * STREAMS), "-m", "1"]


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    file = os.memfd_create("message", 0)
    try:
        os.write(file, content)
        yield f"/proc/{os.getpid()}/fd/{file}"
    finally:
        os.close(file)


def _read_h2load(said: str, requests: int, frame_bytes: int) -> tuple[float, int]:
    """Read h2load's summary; each body counts without its gRPC frame's head."""
    succeeded = re.search(r"(\d+) succeeded", said)
    fine = re.search(r"status codes: (\d+) 2xx", said)
    rate = re.search(r"finished in \S+, ([\d.]+) req/s", said)
    data = re.search(r"\((\d+)\) data", said)
    if not (succeeded and fine and rate and data):
        raise RuntimeError(f"h2load said:\n{said}")
    if not int(succeeded[1]) == int(fine[1]) == requests:
        raise RuntimeError(f"not every answer is a 2xx:\n{said}")
    return requests / float(rate[1]), int(data[1]) - requests * frame_bytes


def _python(target: Target, requests: int) -> tuple[float, int]:
    plan = {
        "url": target.url,
        "headers": dict(target.headers),
        "message": None if target.message is None else target.message.hex(),
        "connections": CONNECTIONS,
        "streams": STREAMS,
        "requests": requests,
    }
    command = [sys.executable, "-m", "tests.load.closed_loop"]
    said = json.loads(_run(command, json.dumps(plan)))
    return said["seconds"], said["bytes"]
