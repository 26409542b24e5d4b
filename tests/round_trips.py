"""Counts round trips to Postgres where asyncpg writes to the socket."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from unittest.mock import patch

import asyncpg.protocol

# the statements of the present call; None outside of calls, as in pollers
_statements: ContextVar[list[str] | None] = ContextVar("statements", default=None)
_TYPE_LOOK_UP = ("typeinfo_tree", "current_setting('jit')", "set_config('jit'")
_every_statement: list[list[str]] = []


@contextmanager
def counting_connections() -> Iterator[None]:
    """Let connections that are made in this block count what they send."""
    with patch.object(asyncpg.protocol, "Protocol", _CountingProtocol):
        yield


@contextmanager
def round_trips() -> Iterator[list[str]]:
    """Return a list to which each statement of this task and its children is added.

    An entry is one message, or one group of messages, for whose answer the client
    waits. BEGIN and COMMIT are statements. What only a new connection sends is none:
    the messages that prepare a statement, and asyncpg's look-up of a type.
    """
    statements: list[str] = []
    token = _statements.set(statements)
    try:
        yield statements
    finally:
        _statements.reset(token)


@contextmanager
def every_round_trip() -> Iterator[list[str]]:
    """Return a list to which the statements of all tasks are added."""
    statements: list[str] = []
    _every_statement.append(statements)
    try:
        yield statements
    finally:
        _every_statement.remove(statements)


def _record(statement: str) -> None:
    if any(text in statement for text in _TYPE_LOOK_UP):
        return
    if (statements := _statements.get()) is not None:
        statements.append(statement)
    for statements in _every_statement:
        statements.append(statement)


class _CountingProtocol(asyncpg.protocol.Protocol):  # type: ignore[misc]
    def connection_made(self, transport: Any) -> None:
        super().connection_made(_CountingTransport(transport))


class _CountingTransport:
    """Reads the messages of the client on their way to the socket.

    https://www.postgresql.org/docs/18/protocol-message-formats.html
    """

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._prepared: dict[bytes, str] = {}  # texts by name
        self._bound = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def writelines(self, parts: Iterable[Any]) -> None:
        self.write(b"".join(parts))

    def write(self, data: Any) -> None:
        for kind, body in _messages(bytes(data)):
            self._read(kind, body)
        self._transport.write(data)

    def _read(self, kind: bytes, body: bytes) -> None:
        if kind == b"Q":
            _record(body.rstrip(b"\0").decode())
        elif kind == b"P":
            name, text, _ = body.split(b"\0", 2)
            self._prepared[name] = text.decode()
        elif kind == b"B":
            _portal, name, _ = body.split(b"\0", 2)
            self._bound = self._prepared.get(name, "?")
        elif kind == b"S" and self._bound:
            _record(self._bound)
            self._bound = ""


def _messages(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Split what asyncpg writes at once: whole messages of a type and a length.

    The messages that open a connection have no type, but a length below 2**24.
    """
    while data and data[0]:
        end = 1 + int.from_bytes(data[1:5], "big")
        yield data[:1], data[5:end]
        data = data[end:]
