"""Logs: JSON lines on standard error, secrets left out, line breaks escaped."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import orjson
import structlog

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


def redacted(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Leave out what stands under a secret's name."""
    for name in SECRETS & event.keys():
        event[name] = "[redacted]"
    return event


def _json(event: object, **options: Any) -> bytes:
    return orjson.dumps(event, default=str)


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
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            redacted,
            structlog.processors.JSONRenderer(serializer=_json),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.BytesLoggerFactory(sys.stderr.buffer),
        cache_logger_on_first_use=True,
    )
    # a library's chatter is none of an operator's business below WARNING
    logging.basicConfig(
        level=max(number, logging.WARNING), handlers=[_Relay()], force=True
    )
