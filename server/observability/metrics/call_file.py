"""A file with the counts of calls of one process, which outlives the process.

The process changes memory that the kernel shares with the file, so that SIGKILL loses
no count. Layout: the size of the header in 8 bytes; the header, JSON with the labels of
each row; padding to a multiple of 8; the rows of doubles. The process locks the file
for as long as it runs.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import struct
from collections.abc import Sequence
from pathlib import Path

SUFFIX = ".calls"
_DOUBLE_SIZE = 8  # bytes
_HEADER_SIZE = struct.Struct("<Q")
_locked_files: list[object] = []  # a lock ends when its file is closed


def create(
    path: Path, rows: Sequence[Sequence[str]], columns: int
) -> memoryview[float]:
    """Create the file, locked; return its numbers, which are 0."""
    header = json.dumps(rows).encode()
    start = _aligned(_HEADER_SIZE.size + len(header))
    size = start + _DOUBLE_SIZE * columns * len(rows)
    temporary = path.with_suffix(".new")  # readers do not see it before it is locked
    file = temporary.open("x+b")
    fcntl.flock(file, fcntl.LOCK_EX)
    _locked_files.append(file)
    file.write(_HEADER_SIZE.pack(len(header)) + header)
    file.truncate(size)
    file.flush()
    temporary.rename(path)
    return memoryview(mmap.mmap(file.fileno(), size))[start:].cast("d")


def read(path: Path) -> tuple[list[list[str]], memoryview[float]]:
    """Return the labels of the rows, and a copy of the numbers."""
    content = path.read_bytes()
    (size,) = _HEADER_SIZE.unpack_from(content)
    rows: list[list[str]] = json.loads(content[_HEADER_SIZE.size :][:size])
    numbers = memoryview(content)[_aligned(_HEADER_SIZE.size + size) :]
    return rows, numbers.cast("d")


def is_in_use(path: Path) -> bool:
    """Return whether the process that created the file runs."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _aligned(size: int) -> int:
    return -(-size // _DOUBLE_SIZE) * _DOUBLE_SIZE
