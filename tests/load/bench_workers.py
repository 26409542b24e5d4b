"""GetUser over gRPC: two workers against one process, on two cores.

The client shares the two cores, so it has to be a cheap one: tests/load/http2_loop.py.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from blatam.user.v1 import user_pb2
from tests.load.loader import CORES, STREAMS, cpu_seconds
from tests.load.row import ResultRow
from tests.load.service import (
    ACADEMY,
    LIFTED,
    call_once,
    free_address,
    serving_processes,
    sign_in,
    wait_until_listening,
)

METHOD = "/blatam.user.v1.UserService/GetUser"
ROUNDS = 9
CONNECTIONS = 16  # the kernel spreads them over the workers by their addresses
WARM_UP_CALLS = 4_000
SECONDS = 1.0  # of each half round


@dataclass(frozen=True, slots=True)
class Service:
    """A running service, the processes that serve, and the calls to make."""

    processes: tuple[int, ...]
    plan: dict[str, object]
    response_size: int  # bytes

    def measure(self, calls: int) -> tuple[float, float]:
        """Return the calls per second and the CPU seconds per call."""
        before = sum(map(cpu_seconds, self.processes))
        result = subprocess.run(
            [sys.executable, "-m", "tests.load.http2_loop"],
            input=json.dumps({**self.plan, "requests": calls}),
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        cpu = sum(map(cpu_seconds, self.processes)) - before
        measured = json.loads(result.stdout)
        if measured["bytes"] != calls * self.response_size:
            raise RuntimeError("not every call succeeded: a size differs")
        return calls / measured["seconds"], cpu / calls


def rows() -> list[ResultRow]:
    """Return the ratios of the calls per second and of the CPU per call."""
    if len(CORES) < 2:
        raise RuntimeError("this benchmark needs two cores")
    with running(1) as single, running(2) as double:
        plans = []
        for service in (single, double):
            service.measure(WARM_UP_CALLS)
            plans.append((service, int(service.measure(WARM_UP_CALLS)[0] * SECONDS)))
        rounds = [_round(plans, reverse=bool(n % 2)) for n in range(ROUNDS)]
    rates = statistics.median(two[0] / one[0] for one, two in rounds)
    cpu = statistics.median(two[1] / one[1] for one, two in rounds)
    one, two = (
        [statistics.median(r[which][k] for r in rounds) for k in (0, 1)]
        for which in (0, 1)
    )
    notes = (
        f"{one[0]:,.0f} / {two[0]:,.0f} calls/s, "
        f"CPU {one[1] * 1e6:.0f} / {two[1] * 1e6:.0f} us per call"
    )
    return [
        ResultRow("WORKERS=2 / 1: calls per second", rates, 1.6, notes=notes),
        ResultRow("WORKERS=2 / 1: CPU per call", cpu, 1.05, "lower", notes=notes),
    ]


def _round(
    plans: list[tuple[Service, int]], *, reverse: bool
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Measure both, in reverse order every other round: other processes disturb."""
    samples = [s.measure(n) for s, n in (reversed(plans) if reverse else plans)]
    one, two = reversed(samples) if reverse else samples
    return one, two


@contextmanager
def running(workers: int) -> Iterator[Service]:
    """Start `academy up` on all cores and sign a user in."""
    with TemporaryDirectory(prefix="blatam-bench-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)  # Postgres runs under another account
        grpc, rest = free_address(), free_address()
        settings = {
            "PATH": "/usr/bin:/bin",
            "STATE_DIR": str(folder / "state"),
            "GRPC_LISTEN": grpc,
            "HTTP_LISTEN": rest,
            "DEBUG": "0",
            "WORKERS": str(workers),
            "RATE_LIMITS": json.dumps(LIFTED),
        }
        log = folder / "academy.log"
        with log.open("wb") as output:
            server = subprocess.Popen(
                [*ACADEMY, "up"], env=settings, stdout=output, stderr=output
            )
        try:
            wait_until_listening(server, rest, log)
            user, bearer = sign_in(rest)
            message = user_pb2.GetUserRequest(id=user).SerializeToString()
            size = len(call_once(grpc, METHOD, message, bearer))
            url = f"http://{grpc}{METHOD}"
            plan: dict[str, object] = {
                "url": url,
                "headers": bearer,
                "message": message.hex(),
            }
            plan |= {"connections": CONNECTIONS, "streams": STREAMS}
            yield Service(serving_processes(server.pid), plan, size)
        finally:
            server.terminate()
            server.wait(60)
