"""Counting the statements that a store sends, and making one of them fail."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from server.store.connect import Database


@contextmanager
def counted(database: Database) -> Iterator[list[str]]:
    """Give the list that every statement is added to."""
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
    """A fault that a test put in."""


@contextmanager
def failing_at(database: Database, number: int) -> Iterator[list[str]]:
    """Have the statement of this number fail in its place; count from 1."""
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
