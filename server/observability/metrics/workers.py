"""The metrics of all worker processes, merged in the process that supervises them.

Each worker has a file with its counts of calls and a socket on which it serves its
other metrics, both in one folder. The counts of calls are read from the files, so they
are exact even for a worker that hangs or was killed. A worker that drains writes its
other counts to a file when it has done its last work; those of a worker that was killed
are those of the last scrape.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from server.observability.metrics import call_file, definitions
from server.observability.metrics.calls import CallMetrics
from server.observability.metrics.exposition import numbers_by, render
from server.observability.metrics.merging import counts_only, merge_expositions
from server.observability.metrics.process import call_families

FETCH_TIMEOUT_SECONDS = 0.5
_SOCKET_SUFFIX = ".sock"
_FINAL_SUFFIX = ".final"


@dataclass(frozen=True, slots=True)
class WorkerFiles:
    """Where a worker process counts its calls and serves its other metrics."""

    call_counts: Path
    socket: Path
    final: Path  # its other metrics after its last work, if it was not killed

    @classmethod
    def new(cls, folder: Path) -> WorkerFiles:
        """Return paths that no process has used."""
        name = f"{os.getpid()}-{secrets.token_hex(4)}"
        return cls._named(folder, name)

    @classmethod
    def all(cls, folder: Path) -> list[WorkerFiles]:
        """Return those of each process that was started and has not been removed."""
        paths = sorted(folder.glob(f"*{call_file.SUFFIX}"))
        return [cls._named(folder, path.stem) for path in paths]

    @classmethod
    def _named(cls, folder: Path, name: str) -> WorkerFiles:
        suffixes = call_file.SUFFIX, _SOCKET_SUFFIX, _FINAL_SUFFIX
        return cls(*(folder / (name + suffix) for suffix in suffixes))

    @property
    def address(self) -> str:
        """The address of the worker's metrics listener."""
        return f"unix:{self.socket}"

    def remove(self) -> None:
        """Remove the files of a process that has ended."""
        self.call_counts.unlink()
        self.socket.unlink(missing_ok=True)
        self.final.unlink(missing_ok=True)

    def write_final(self, text: bytes) -> None:
        """Write the metrics of a process after its last work, all of them or none."""
        draft = self.final.with_suffix(".new")
        draft.write_bytes(text)
        draft.rename(self.final)


@dataclass(slots=True)
class WorkerMetrics:
    """Renders the metrics of all workers; what has ended stays counted."""

    folder: Path
    configured: int  # processes
    _ended: bytes = b""  # counts of processes that have ended
    _responding: int = 0
    _last: dict[WorkerFiles, bytes] = field(default_factory=dict)  # by running process
    _rendering: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def render(self) -> bytes:
        """Return the text for Prometheus; a worker that does not answer delays it."""
        async with self._rendering:
            running, self._responding = [], 0
            for files in WorkerFiles.all(self.folder):
                if call_file.is_in_use(files.call_counts):
                    running.append(files)
                else:
                    self._retire(files)
            texts = await asyncio.gather(*map(self._text, running))
            workers = {"configured": self.configured, "responding": self._responding}
            own = render([numbers_by(definitions.WORKERS, workers)])
            return merge_expositions([self._ended, *texts, own])

    def _retire(self, files: WorkerFiles) -> None:
        last = self._last.pop(files, b"")
        if files.final.exists():
            last = files.final.read_bytes()
        calls = _calls_text(files)
        self._ended = merge_expositions([self._ended, *map(counts_only, (calls, last))])
        files.remove()

    async def _text(self, files: WorkerFiles) -> bytes:
        """Return the metrics of a running worker, without gauges if it is silent."""
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_SECONDS):
                self._last[files] = text = await _fetch(files.socket)
                self._responding += 1
        except (OSError, EOFError, ValueError):  # TimeoutError is an OSError
            text = counts_only(self._last.get(files, b""))
        return _calls_text(files) + text


def _calls_text(files: WorkerFiles) -> bytes:
    return render(call_families(list(CallMetrics.load(files.call_counts))))


async def _fetch(path: Path) -> bytes:
    """Return the page of a worker. Raises ValueError if its status is not 200."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: worker\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        if head.split(b" ", 2)[1] != b"200":
            raise ValueError("a worker cannot render its metrics")
        return await reader.read()
    finally:
        writer.close()
