"""StaleReads: what is logged when the primary is read instead of the replica."""

from typing import Any, cast

import asyncpg
import pytest

from server.store.pool.statement import Statement
from server.store.replica.replica import Replica
from server.store.replica.stale_reads import StaleReads
from server.store.replica.write_marks import WriteMarks
from tests.logs import captured_lines


class _Server:
    """Fails with an error, or returns no rows; a Reader, and a replica with itself."""

    is_usable = True

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error
        self.database = self

    async def run(self, *_: object) -> list[asyncpg.Record]:
        if self._error:
            raise self._error
        return []


class _NoMarks:
    async def is_unmarked(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (asyncpg.InsufficientPrivilegeError("permission denied"), "warning"),
        (asyncpg.SerializationError("conflict with recovery"), "info"),
    ],
)
async def test_only_what_an_operator_must_fix_is_a_warning(
    error: Exception, level: str
) -> None:
    primary: Any = _Server()
    replica = cast("Replica", _Server(error))
    reads = StaleReads(primary, replica, cast("WriteMarks", _NoMarks()))
    with captured_lines(cause=repr(error)) as lines:
        assert await reads.run(Statement("select 1")) == []
    assert [line["log_level"] for line in lines] == [level]
