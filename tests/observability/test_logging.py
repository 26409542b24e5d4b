"""Log lines: JSON or console, each event on one line, secrets replaced."""

import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest

from server.observability.logging import _timestamp

ROOT = Path(__file__).parents[2]
FORGED = "x\n2026-01-01T00:00:00Z [info     ] forged\r\x1b[2J\u202e\u2028\ud800"
PROGRAM = f"""
import logging, structlog, sys
from server.observability.logging import LogFormat, configure
configure("info", LogFormat(sys.argv[1]) if sys.argv[1:] else None)
log = structlog.get_logger()
hostile = {FORGED!r}
log.info("call", method="Get", path=hostile, tags=[hostile], error=ValueError(hostile))
log.info("call", caller="x level=error", password="hunter2", authorization="Bearer h2")
log.info(hostile)
logging.getLogger("library").warning("refused %s", hostile)
try:
    raise ValueError(hostile)
except ValueError:
    log.exception("failed")
"""
COLOUR = re.compile(rb"\x1b\[[0-9;]*m")


def output_on_terminal(*arguments: str) -> bytes:
    """Run the program with a pseudo-terminal as its standard error."""
    leader, follower = pty.openpty()
    try:
        command = [sys.executable, "-c", PROGRAM, *arguments]
        process = subprocess.Popen(command, cwd=ROOT, stderr=follower)
        os.close(follower)
        output = b""
        try:
            while chunk := os.read(leader, 65536):
                output += chunk
        except OSError:  # Linux: the program has closed the terminal
            pass
        assert process.wait(30) == 0
        return output.replace(b"\r\n", b"\n")
    finally:
        os.close(leader)


def output_in_pipe(*arguments: str) -> bytes:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stderr


@pytest.mark.parametrize(
    ("run", "arguments"),
    [
        (output_in_pipe, ()),
        (output_in_pipe, ("json",)),
        (output_on_terminal, ("json",)),
    ],
)
def test_json_lines_hold_hostile_text_as_a_string(
    run: Callable[..., bytes], arguments: tuple[str, ...]
) -> None:
    """JSON is the format without a terminal, and wherever LOG_FORMAT requires it."""
    output = run(*arguments)
    lines = [orjson.loads(line) for line in output.splitlines()]
    assert [line["event"][:8] for line in lines] == [
        "call",
        "call",
        FORGED[:8],
        "refused ",
        "failed",
    ]
    assert b"\x1b" not in output


@pytest.mark.parametrize(
    ("run", "arguments"), [(output_on_terminal, ()), (output_in_pipe, ("console",))]
)
def test_console_lines_cannot_be_forged(
    run: Callable[..., bytes], arguments: tuple[str, ...]
) -> None:
    """Text of a caller adds no line, no control character and no field."""
    output = run(*arguments)
    text = COLOUR.sub(b"", output).decode()
    assert all(c.isprintable() or c == "\n" for c in text)
    lines = text.splitlines()
    events = [line for line in lines if re.match(r"20\d\d-", line)]
    assert len(events) == 5
    assert "forged" in events[0]
    assert "caller='x level=error'" in events[1]
    trace = [line for line in lines if line not in events]
    assert trace
    assert all(line.startswith("  | ") for line in trace)


@pytest.mark.parametrize("run", [output_on_terminal, output_in_pipe])
def test_secrets_are_replaced_in_both_formats(run: Callable[..., bytes]) -> None:
    output = run()
    assert b"hunter2" not in output
    assert b"Bearer" not in output
    assert output.count(b"[redacted]") == 2


EVENTS = """
import logging, structlog, sys
from server.observability.logging import add_worker, configure, log_event, request_id
configure(sys.argv[1], None, add_worker(3))
request_id.set("12345678")
log = structlog.get_logger()
fields = {"method": "/x/Y", "ms": 1.5, "caller": "user:1", "password": "hunter2"}
log.info("call", **fields)
log_event(logging.INFO, "call", dict(fields))
log.error("call", **fields)
log_event(logging.ERROR, "call", dict(fields))
"""


@pytest.mark.parametrize(
    ("level", "levels"), [("info", ["info", "error"]), ("warning", ["error"])]
)
def test_call_lines_equal_those_of_structlog(level: str, levels: list[str]) -> None:
    """The same fields, redaction, order and levels, without structlog's loggers."""
    command = [sys.executable, "-c", EVENTS, level]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stderr
    lines = [orjson.loads(line) for line in output.splitlines()]
    for line in lines:
        del line["timestamp"]
    assert [line["level"] for line in lines[::2]] == levels
    for logged, event in zip(lines[::2], lines[1::2], strict=True):
        assert list(logged.items()) == list(event.items())
        assert (event["password"], event["worker"]) == ("[redacted]", 3)


@pytest.mark.parametrize("microseconds", [0, 1, 999_999, 1_000_000, 86_399_999_999])
def test_timestamp_is_rfc_3339_in_utc(microseconds: int) -> None:
    at = datetime(2026, 11, 26, tzinfo=UTC) + timedelta(microseconds=microseconds)
    nanoseconds = (at - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)
    text = _timestamp(nanoseconds * 1000 + 999)
    assert text == at.isoformat(timespec="microseconds").replace("+00:00", "Z")
