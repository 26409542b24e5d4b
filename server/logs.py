"""Logs: JSON lines on standard error, secrets left out, line breaks escaped."""

from __future__ import annotations

import asyncio
import atexit
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from threading import Lock
from typing import BinaryIO

import orjson
import structlog
from structlog.typing import EventDict

# names under which a secret could come; values under them are never written
SECRETS = frozenset(
    {
        "access_token",
        "authorization",
        "cookie",
        "current_password",
        "database_url",
        "new_password",
        "password",
        "password_hash",
        "redis_url",
        "refresh_token",
        "secret_key",
        "smtp_url",
        "token",
    }
)


request_id: ContextVar[str] = ContextVar("request_id")  # of the call that logs


def named(_logger: object, level: str, event: EventDict) -> EventDict:
    """Say what a line was logged by: its level, its time and its call."""
    event["level"] = level
    event["timestamp"] = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    if found := request_id.get(""):
        event["request_id"] = found
    return event


def redacted(_logger: object, _level: str, event: EventDict) -> EventDict:
    """Leave out what stands under a secret's name."""
    if not SECRETS.isdisjoint(event):
        for name in SECRETS & event.keys():
            event[name] = "[redacted]"
    return event


def _json(_logger: object, _level: str, event: EventDict) -> bytes:
    return orjson.dumps(event, default=str)


class Lines:
    """Writes lines to a stream; those of one turn of a loop together, at its end.

    Writing costs as much as all the rest of a line. The cost: a process that is
    killed loses the lines of its last turn.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._held: list[bytes] = []
        self._lock = Lock()
        atexit.register(self._write)

    def msg(self, line: bytes) -> None:
        """Write a line, soon."""
        with self._lock:
            self._held.append(line)
            first = len(self._held) == 1
        if first:
            try:
                asyncio.get_running_loop().call_soon(self._write)
            except RuntimeError:  # a thread that has no loop
                self._write()

    debug = info = warning = error = critical = exception = log = msg

    def _write(self) -> None:
        with self._lock:
            lines, self._held = self._held, []
            if lines:
                self._stream.write(b"\n".join((*lines, b"")))
                self._stream.flush()


_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message"}


class _Relay(logging.Handler):
    """Takes the standard library's log lines along."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record as one of our lines."""
        structlog.get_logger().log(
            record.levelno,
            record.getMessage(),
            logger=record.name,
            exc_info=record.exc_info,
            **{k: v for k, v in vars(record).items() if k not in _STANDARD},
        )


def configure(level: str) -> None:
    """Send every log line of this level and above, ours and libraries', to stderr."""
    number = logging.getLevelNamesMapping()[level.upper()]
    lines = Lines(sys.stderr.buffer)
    structlog.configure(
        processors=[named, structlog.processors.format_exc_info, redacted, _json],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_: lines,
        cache_logger_on_first_use=True,
    )
    # a library's chatter is none of an operator's business below WARNING
    logging.basicConfig(
        level=max(number, logging.WARNING), handlers=[_Relay()], force=True
    )
