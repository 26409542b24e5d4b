"""Which fields of a log line hold secrets, and how their values are replaced."""

from __future__ import annotations

from structlog.typing import EventDict

SECRET_FIELDS = frozenset(
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


def redact(_logger: object, _level: str, event: EventDict) -> EventDict:
    """Replace the value of every field that could hold a secret."""
    if not SECRET_FIELDS.isdisjoint(event):
        for name in SECRET_FIELDS & event.keys():
            event[name] = "[redacted]"
    return event
