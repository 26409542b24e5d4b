"""Counts of calls, in rows of numbers that may outlive the process.

A counter of prometheus-client costs 0.4 to 1 us for each change, and a call changes
five. Here a method and a transport have one row of doubles, in memory or in a file:
docs/decisions/metrics.md. Only the thread of the event loop may change a row.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

from server.observability.metrics import call_file
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
OTHER = "_OTHER"

# The columns of a row; the codes and the buckets take one each.
_STARTED, _RECEIVED, _SENT, _LIMITED, _OPEN, _SECONDS, _FIRST_CODE = range(7)
_FIRST_BUCKET = _FIRST_CODE + len(CODES)
_COLUMNS = _FIRST_BUCKET + len(CALL_BUCKETS) + 1  # the last bucket is +Inf


@dataclass(frozen=True, slots=True)
class CallLabels:
    """The labels of a method, which come from its descriptor."""

    grpc_type: str  # as go-grpc-prometheus names it
    grpc_service: str
    grpc_method: str


UNKNOWN_METHOD = CallLabels(OTHER, OTHER, OTHER)


class CallCounts:
    """The counts of one method over one transport."""

    __slots__ = ("_row", "labels", "transport")

    def __init__(
        self, labels: CallLabels, transport: Transport, row: memoryview[float]
    ) -> None:
        self.labels = labels
        self.transport = transport
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

    def open_stream(self) -> None:
        """Count a stream as open."""
        self._row[_OPEN] += 1

    def close_stream(self) -> None:
        """Count a stream as no longer open."""
        self._row[_OPEN] -= 1

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
    def open_streams(self) -> int:
        """Streams that are open."""
        return int(self._row[_OPEN])

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
    """The counts of every method of a server, over every transport."""

    def __init__(
        self,
        rows: Sequence[tuple[CallLabels, Transport]],
        numbers: memoryview[float],
        *,
        in_file: bool = False,
    ) -> None:
        self.in_file = in_file
        self._counts = {
            (labels, transport): CallCounts(
                labels, transport, numbers[_COLUMNS * index : _COLUMNS * (index + 1)]
            )
            for index, (labels, transport) in enumerate(rows)
        }

    @classmethod
    def of(
        cls, methods: Iterable[CallLabels] = (), path: Path | None = None
    ) -> CallMetrics:
        """Return the counts of these methods; with a path they are in a new file."""
        rows = list(product((*methods, UNKNOWN_METHOD), TRANSPORTS))
        if path is None:
            size = struct.calcsize("d") * _COLUMNS * len(rows)
            return cls(rows, memoryview(bytearray(size)).cast("d"))
        texts = [(*astuple(labels), transport) for labels, transport in rows]
        return cls(rows, call_file.create(path, texts, _COLUMNS), in_file=True)

    @classmethod
    def load(cls, path: Path) -> CallMetrics:
        """Return the counts that a file has now."""
        texts, numbers = call_file.read(path)
        rows: Any = [(CallLabels(*labels), transport) for *labels, transport in texts]
        return cls(rows, numbers, in_file=True)

    def of_method(self, labels: CallLabels) -> dict[Transport, CallCounts]:
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
