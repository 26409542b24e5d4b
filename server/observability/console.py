"""Log lines for a terminal: colored, aligned, safe against control characters."""

from __future__ import annotations

import structlog
from structlog.typing import EventDict

_COLUMNS = frozenset({"timestamp", "level", "event", "exception"})
_render = structlog.dev.ConsoleRenderer(
    colors=True,
    force_colors=True,
    exception_formatter=structlog.dev.plain_traceback,  # no local variables
)


def render_console(logger: object, level: str, event: EventDict) -> bytes:
    """Return the line; text of a caller never starts a new line or moves the cursor."""
    safe = {
        name: value if name in _COLUMNS else _printable(value)
        for name, value in event.items()
    }
    safe["event"] = _escape(str(event.get("event", "")))
    if "exception" in event:
        # The mark keeps a line of an exception's message from looking like a log line.
        lines = str(event["exception"]).split("\n")
        safe["exception"] = "\n".join(f"  | {_escape(line)}" for line in lines)
    return _render(logger, level, safe).encode(errors="backslashreplace")


def _printable(value: object) -> object:
    """Return a value for the renderer, which quotes spaces and quotes itself."""
    text = value if isinstance(value, str) else repr(value)
    return value if text.isprintable() else _escape(text)


def _escape(text: str) -> str:
    """Return the text with every character that is not printable as its escape."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )
