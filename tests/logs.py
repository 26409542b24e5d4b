"""Captures log lines, without those of other services in this process."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import structlog

Line = dict[str, Any]


@contextmanager
def captured_lines(**values: object) -> Iterator[list[Line]]:
    """Capture the log lines with these values; they are listed after the block.

    The background tasks of a service that all tests share log meanwhile.
    """
    lines: list[Line] = []
    with structlog.testing.capture_logs() as captured:
        yield lines
    lines += [dict(line) for line in captured if _has(line, values)]


def _has(line: Mapping[str, object], values: Mapping[str, object]) -> bool:
    return all(line.get(name) == value for name, value in values.items())
