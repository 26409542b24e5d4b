"""The erasure log: the ids of erased users, in a file outside the database.

A backup holds users who are erased later. When it is restored, the log names them, so
that they are erased again: see docs/decisions/erasure-log.md. Each line is an id and
the time of the erasure. A line is only ever appended, by one process at a time.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import structlog

from server.domain.clock import Clock
from server.domain.errors import StoreUnavailable

log = structlog.get_logger()
# Half of a bigint: after a restore, ids begin far above the newest one of the log.
MAX_USER_ID = 2**62
_TIME_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"
_LINE = re.compile(rb"([1-9][0-9]{0,18}) ([0-9]{4}-[0-9T:-]{14}\.[0-9]{6}Z)\n?")
# ends what a crash has left of a line, so that the next line can follow
_INTERRUPTED = b" interrupted\n"
# what a crash may have left of lines: their beginnings, and zeros of unwritten blocks
_INCOMPLETE = re.compile(
    rb"(?:[1-9][0-9]{0,18}(?: [0-9T:.Z-]{0,27})?)?[\0 interupd]*(?: interrupted\n)?"
)


class DamagedErasureLog(Exception):
    """The log has a line that no process has written, or it cannot be read."""


class ErasureLog:
    """Appends to the log of ERASURE_LOG."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock

    def create(self) -> None:
        """Create the file unless it exists. Raises OSError if it cannot be written."""
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        os.close(os.open(self._path, flags, 0o600))
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    async def append(self, user_id: int) -> None:
        """Append a user; return when the line is on the disk. Raises StoreUnavailable.

        Part of a line may have been written if it fails; the next append ends it.
        """
        line = f"{user_id} {self._clock().astimezone(UTC).strftime(_TIME_FORMAT)}\n"
        try:
            await asyncio.to_thread(self._write, line.encode())
        except OSError as error:
            log.error("erasure log not written", user_id=user_id, cause=str(error))
            raise StoreUnavailable from error

    def _write(self, line: bytes) -> None:
        # It is not created here: a volume that is not mounted must be noticed.
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(self._path, flags)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = _INTERRUPTED + line
            if os.write(descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_erasures(path: Path) -> Mapping[int, datetime]:
    """Return the time of each user's last erasure, by id.

    The last line may be incomplete, because a crash has interrupted the append: then
    it is ignored. Raises DamagedErasureLog.
    """
    erasures: dict[int, datetime] = {}
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    user_id, erased_at = _parse(line)
                except ValueError:
                    if _INCOMPLETE.fullmatch(line):
                        continue
                    raise DamagedErasureLog(
                        f"{path}: line {number} is damaged: take the file from a copy, "
                        "or correct the line"
                    ) from None
                erasures[user_id] = erased_at
    except OSError as error:
        raise DamagedErasureLog(f"{path} cannot be read: {error.strerror}") from error
    return erasures


def _parse(line: bytes) -> tuple[int, datetime]:
    """Return the id and the time of a line. Raises ValueError."""
    match = _LINE.fullmatch(line)
    if match is None or int(match[1]) > MAX_USER_ID:
        raise ValueError
    return int(match[1]), datetime.fromisoformat(match[2].decode())
