"""Counts the statements of a store, and makes one of them fail."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from server.store.connections.connect import Database


@contextmanager
def counted(database: Database) -> Iterator[list[str]]:
    """Return a list to which every statement is appended."""
    statements: list[str] = []

    def note(_c: Any, _k: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    engine = database.engine.sync_engine
    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)


class Injected(Exception):
    """An error that a test injects."""


@contextmanager
def failing_at(database: Database, number: int) -> Iterator[list[str]]:
    """Make the statement with this number, from 1, fail before it is sent."""
    with counted(database) as statements:

        def fail(*_: Any) -> None:
            if len(statements) == number:
                raise Injected

        engine = database.engine.sync_engine
        sa.event.listen(engine, "before_cursor_execute", fail)
        try:
            yield statements
        finally:
            sa.event.remove(engine, "before_cursor_execute", fail)
