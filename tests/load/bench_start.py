"""`academy up` on an existing database: time to its first answer, and memory (P12)."""

import statistics
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import psutil

from tests.load.row import ResultRow
from tests.load.service import ACADEMY, free_address, wait_until_listening

STARTS = 5
MIB = 1024 * 1024


def rows() -> list[ResultRow]:
    """Return the seconds until the first call is answered, and the resident memory."""
    with TemporaryDirectory(prefix="blatam-bench-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)  # Postgres runs under another account
        _start(folder)  # creates the database
        starts = [_start(folder) for _ in range(STARTS)]
    seconds = statistics.median(seconds for seconds, _ in starts)
    memory = statistics.median(memory for _, memory in starts)
    return [
        ResultRow("P12 academy up, warm: first answer", seconds, 3, "lower", "s"),
        ResultRow("P12 academy up, warm: memory", memory, 180, "lower", "MiB"),
    ]


def _start(folder: Path) -> tuple[float, float]:
    rest = free_address()
    settings = {
        "PATH": "/usr/bin:/bin",
        "STATE_DIR": str(folder / "state"),
        "GRPC_LISTEN": free_address(),
        "HTTP_LISTEN": rest,
    }
    log = folder / "academy.log"
    started = time.monotonic()
    with log.open("wb") as output:
        server = subprocess.Popen(
            [*ACADEMY, "up"], env=settings, stdout=output, stderr=output
        )
    try:
        wait_until_listening(server, rest, log)
        while httpx.get(f"http://{rest}/api/v1/posts").status_code == 503:
            time.sleep(0.01)
        seconds = time.monotonic() - started
        return seconds, psutil.Process(server.pid).memory_info().rss / MIB
    finally:
        server.terminate()
        server.wait(60)
