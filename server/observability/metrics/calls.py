"""Counts of calls, in rows of numbers that may outlive the process.

A counter of prometheus-client costs 0.4 to 1 us for each change, and a call changes
five. Here a method and a transport have one row of doubles, in memory or in a file:
docs/decisions/metrics.md. Only the thread of the event loop may change a row.
"""

from __future__ import annotations

import hashlib
import mmap
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal, get_args

from server.observability.metrics.definitions import CALL_BUCKETS

Transport = Literal["grpc", "rest", "connect", "grpc_web", "batch"]
TRANSPORTS: tuple[Transport, ...] = get_args(Transport)
CODES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
    "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
    "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS",
    "UNAUTHENTICATED",
)  # fmt: skip
UNIMPLEMENTED = CODES.index("UNIMPLEMENTED")
OTHER: Literal["_OTHER"] = "_OTHER"

# The columns of a row; the codes and the buckets take one each.
_STARTED, _RECEIVED, _SENT, _LIMITED, _SECONDS, _FIRST_CODE = range(6)
_FIRST_BUCKET = _FIRST_CODE + len(CODES)
_COLUMNS = _FIRST_BUCKET + len(CALL_BUCKETS) + 1  # the last bucket is +Inf
_DOUBLE = 8  # bytes
_HEADER_SIZE = 16  # bytes: a hash of the rows' labels


@dataclass(frozen=True, slots=True)
class CallLabels:
    """The labels of a method, which come from its descriptor."""

    grpc_type: Literal["unary", "server_stream", "_OTHER"]
    grpc_service: str
    grpc_method: str


UNKNOWN_METHOD = CallLabels(OTHER, OTHER, OTHER)


class CallCounts:
    """The counts of one method over one transport."""

    __slots__ = ("_row", "labels", "open_streams", "transport")

    def __init__(
        self, labels: CallLabels, transport: Transport, row: memoryview
    ) -> None:
        self.labels = labels
        self.transport = transport
        self.open_streams = 0  # of this process
        self._row = row

    def start(self) -> None:
        """Count a call and its request message."""
        self._row[_STARTED] += 1
        self._row[_RECEIVED] += 1

    def send(self) -> None:
        """Count a response message."""
        self._row[_SENT] += 1

    def end(self, code: int, seconds: float, *, rate_limited: bool = False) -> None:
        """Count the end of a call."""
        row = self._row
        row[_FIRST_CODE + code] += 1
        row[_FIRST_BUCKET + bisect_left(CALL_BUCKETS, seconds)] += 1
        row[_SECONDS] += seconds
        if rate_limited:
            row[_LIMITED] += 1

    @property
    def values(self) -> tuple[str, str, str, str]:
        """The values of the labels of CALL_LABELS."""
        labels = self.labels
        service, method = labels.grpc_service, labels.grpc_method
        return labels.grpc_type, service, method, self.transport

    @property
    def started(self) -> int:
        """Calls that have started."""
        return int(self._row[_STARTED])

    @property
    def received(self) -> int:
        """Request messages."""
        return int(self._row[_RECEIVED])

    @property
    def sent(self) -> int:
        """Response messages."""
        return int(self._row[_SENT])

    @property
    def rate_limited(self) -> int:
        """Calls that a rate limit refused."""
        return int(self._row[_LIMITED])

    @property
    def seconds(self) -> float:
        """Duration of all calls that have ended."""
        return float(self._row[_SECONDS])

    @property
    def handled(self) -> dict[str, int]:
        """Calls that have ended, by code; without the codes that none ended with."""
        counts = self._row[_FIRST_CODE:_FIRST_BUCKET].tolist()
        return {
            code: int(count) for code, count in zip(CODES, counts, strict=True) if count
        }

    @property
    def buckets(self) -> list[int]:
        """Calls that have ended, by bucket of their duration."""
        return [int(count) for count in self._row[_FIRST_BUCKET:]]


class CallMetrics:
    """The counts of every method of a server, over every transport.

    With a `path` they are kept in a file: a process that is started again with the
    same path continues to count where the previous one stopped, even after SIGKILL.
    """

    def __init__(
        self, methods: Iterable[CallLabels] = (), path: Path | None = None
    ) -> None:
        pairs = list(product((*methods, UNKNOWN_METHOD), TRANSPORTS))
        cells = _cells(pairs, path)
        self._counts = {
            (labels, transport): CallCounts(
                labels, transport, cells[_COLUMNS * index : _COLUMNS * (index + 1)]
            )
            for index, (labels, transport) in enumerate(pairs)
        }

    def of(self, labels: CallLabels) -> dict[Transport, CallCounts]:
        """Return the counts of one method, by transport."""
        return {transport: self._counts[labels, transport] for transport in TRANSPORTS}

    def count_unknown(self, transport: Transport) -> None:
        """Count a call of an unknown method, which is refused at once."""
        counts = self._counts[UNKNOWN_METHOD, transport]
        counts.start()
        counts.end(UNIMPLEMENTED, 0.0)

    def __iter__(self) -> Iterator[CallCounts]:
        """Iterate over the counts of methods that were called."""
        return (counts for counts in self._counts.values() if counts.started)


def _cells(rows: Sequence[object], path: Path | None) -> memoryview:
    """Return the numbers of all rows; zero unless the file has the same rows."""
    size = _HEADER_SIZE + _DOUBLE * _COLUMNS * len(rows)
    if path is None:
        buffer = memoryview(bytearray(size))
    else:
        header = hashlib.sha256(repr((rows, _COLUMNS)).encode()).digest()
        with path.open("a+b") as file:
            file.seek(0)
            if file.read(_HEADER_SIZE) != header[:_HEADER_SIZE]:
                file.truncate(0)
                file.write(header[:_HEADER_SIZE])
            file.truncate(size)
            file.flush()
            buffer = memoryview(mmap.mmap(file.fileno(), size))
    return buffer[_HEADER_SIZE:].cast("d")
