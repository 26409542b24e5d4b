"""Load servers on one core from a client on another; needs no service.

The result is the ratio of CPU time per request: absolute figures vary between runs,
and requests/s also depends on other processes. Rounds alternate between the targets,
so that a slow minute affects both.
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
SECONDS = 0.4  # of each half round; many short rounds average out other processes
ROUNDS = 15
CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, LOADER_CORE = CORES[0], CORES[-1]
GRPC_HEADERS = {"content-type": "application/grpc", "te": "trailers"}


@dataclass(frozen=True, slots=True)
class Target:
    """A server to call: by gRPC if there is a message, else by GET over HTTP/1.1."""

    name: str
    process: int
    url: str
    answer_bytes: int
    message: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sample:
    """The measurements of one round, or their medians."""

    per_second: float
    cpu_us: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Medians over the rounds; a ratio of 1 means that ours costs as much as bare."""

    bare: Sample
    ours: Sample
    cpu_ratio: float
    rate_ratio: float


@contextmanager
def serving(module: str, answer: Path) -> Iterator[tuple[int, int]]:
    """Run a module of this folder on the server's core; yield its process and port."""
    command = [sys.executable, "-m", module, str(answer)]
    with started(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        if not (port := server.stdout.readline()):
            raise RuntimeError(f"{module} did not start")
        yield server.pid, int(port)


@contextmanager
def started(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    stdout: int | None = None,
    pinned: bool = True,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends, on the server's core by default."""
    cores = {SERVER_CORE} if pinned else set(CORES)
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        stdout=stdout,
        stderr=subprocess.STDOUT if env else None,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    ) as server:
        try:
            yield server
        finally:
            server.terminate()
            server.wait(30)


@contextmanager
def aside(process: int) -> Iterator[None]:
    """Run a server on the loader's core: it is not what is measured."""

    def move_to(core: int) -> None:
        for thread in Path(f"/proc/{process}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {core})

    move_to(LOADER_CORE)
    try:
        yield
    finally:
        move_to(SERVER_CORE)


def compare(bare: Target, ours: Target, rounds: int = ROUNDS) -> Comparison:
    """Load both alternately, `rounds` times; return the medians."""
    plans = [(target, int(_warm(target) * SECONDS)) for target in (bare, ours)]
    pairs = [_round(plans, reverse=bool(number % 2)) for number in range(rounds)]
    # Both halves of a round ran under the same load, so each round has its own ratio.
    return Comparison(
        bare=_median([b for b, _ in pairs]),
        ours=_median([o for _, o in pairs]),
        cpu_ratio=statistics.median(b.cpu_us / o.cpu_us for b, o in pairs),
        rate_ratio=statistics.median(o.per_second / b.per_second for b, o in pairs),
    )


def _round(plans: list[tuple[Target, int]], *, reverse: bool) -> tuple[Sample, Sample]:
    """Measure both, in reverse order every other round."""
    samples = [measure(*plan) for plan in (reversed(plans) if reverse else plans)]
    bare, ours = reversed(samples) if reverse else samples
    return bare, ours


def measure(target: Target, requests: int) -> Sample:
    """Send `requests` and check every answer's status and size."""
    before = cpu_seconds(target.process)
    seconds, received = (_h2load if shutil.which("h2load") else _python)(
        target, requests
    )
    cpu = cpu_seconds(target.process) - before
    if received != requests * target.answer_bytes:
        # gRPC errors are HTTP 200: only the size differs.
        raise RuntimeError(
            f"{target.name}: {received} bytes for {requests} requests, "
            f"expected {target.answer_bytes} each"
        )
    return Sample(requests / seconds, cpu / requests * 1e6)


def cpu_seconds(process: int) -> float:
    """Return the CPU time of all threads of a process, with a resolution of 1 ns.

    The clock id is that of clock_getcpuclockid(3); /proc/<pid>/stat has steps of 10 ms.
    """
    return time.clock_gettime(~process << 3 | 2)


def saturate(target: Target) -> float:
    """Return the requests per second that a target answers at most."""
    requests = int(_warm(target) * SECONDS * ROUNDS)
    return measure(target, requests).per_second


def offer(
    target: Target, per_second: float, seconds: float, folder: Path
) -> list[float]:
    """Send requests at a rate, whether or not earlier ones are answered.

    Return the seconds that each one took. Needs h2load; raises RuntimeError.
    """
    if not shutil.which("h2load"):
        raise RuntimeError("this benchmark needs h2load (Debian: nghttp2-client)")
    log = folder / "requests.tsv"
    log.unlink(missing_ok=True)
    clients = _clients(target)
    _h2load(
        target,
        int(per_second * seconds),
        f"--rps={per_second / clients}",
        f"--log-file={log}",
    )
    lines = (line.split("\t") for line in log.read_text().splitlines())
    return [int(columns[2]) / 1e6 for columns in lines]


def _warm(target: Target) -> float:
    measure(target, WARM_UP_REQUESTS)
    return measure(target, WARM_UP_REQUESTS).per_second


def _median(samples: Sequence[Sample]) -> Sample:
    return Sample(
        statistics.median(s.per_second for s in samples),
        statistics.median(s.cpu_us for s in samples),
    )


def _run(command: Sequence[str], text: str = "") -> str:
    result = subprocess.run(
        command,
        cwd=ROOT,
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        preexec_fn=lambda: os.sched_setaffinity(0, {LOADER_CORE}),
    )
    if result.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{result.stdout}{result.stderr}")
    return result.stdout


def _h2load(target: Target, requests: int, *options: str) -> tuple[float, int]:
    """Return the seconds and the bytes of all bodies."""
    command = ["h2load", "-n", str(requests), *_shape(target), *options]
    for name, value in target.headers.items():
        command += ["-H", f"{name}: {value}"]
    if target.message is not None:
        for name, value in GRPC_HEADERS.items():
            command += ["-H", f"{name}: {value}"]
        framed = b"\0" + len(target.message).to_bytes(4) + target.message
        with as_file(framed) as path:
            return read_h2load(_run([*command, "-d", path, target.url]), requests, 5)
    return read_h2load(_run([*command, target.url]), requests, 0)


def _shape(target: Target) -> list[str]:
    """Return options for the same number of callers; HTTP/1.1 without pipelining."""
    if target.message is not None:
        return ["-c", str(_clients(target)), "-m", str(STREAMS)]
    return ["--h1", "-c", str(_clients(target)), "-m", "1"]


def _clients(target: Target) -> int:
    return CONNECTIONS if target.message is not None else CONNECTIONS * STREAMS


@contextmanager
def as_file(content: bytes) -> Iterator[str]:
    """Yield the path of a file in memory, for a child process to read."""
    file = os.memfd_create("message", 0)
    try:
        os.write(file, content)
        yield f"/proc/{os.getpid()}/fd/{file}"
    finally:
        os.close(file)


def read_h2load(output: str, requests: int, frame_bytes: int) -> tuple[float, int]:
    """Parse h2load's summary; a body counts without the header of its gRPC frame."""
    succeeded = re.search(r"(\d+) succeeded", output)
    successful = re.search(r"status codes: (\d+) 2xx", output)
    rate = re.search(r"finished in \S+, ([\d.]+) req/s", output)
    data = re.search(r"\((\d+)\) data", output)
    if not (succeeded and successful and rate and data):
        raise RuntimeError(f"unexpected output of h2load:\n{output}")
    if not int(succeeded[1]) == int(successful[1]) == requests:
        raise RuntimeError(f"not every answer is a 2xx:\n{output}")
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
    result = json.loads(_run(command, json.dumps(plan)))
    return result["seconds"], result["bytes"]
