"""Which errors mean that Postgres cannot serve now, however SQLAlchemy wraps them."""

import asyncpg
import pytest
import sqlalchemy as sa

from server.domain.errors import StoreUnavailable
from server.store.connections.connect import Database
from server.store.connections.faults import is_outage, is_unreachable
from tests.fault_proxy import fault_proxy, proxied_database_url, to_postgres


@pytest.mark.parametrize(
    "cause",
    [ConnectionRefusedError(111, "refused"), TimeoutError(), ConnectionResetError()],
)
def test_wrapped_socket_errors_are_outages(cause: Exception) -> None:
    error = sa.exc.StatementError("failed", "select 1", (), cause)
    assert is_outage(error)
    assert is_unreachable(error)


@pytest.mark.parametrize(
    "cause", [ValueError("no number"), TypeError(), asyncpg.DataError()]
)
def test_wrapped_programming_errors_are_no_outages(cause: Exception) -> None:
    error = sa.exc.StatementError("failed", "select 1", (), cause)
    assert not is_outage(error)
    assert not is_unreachable(error)


async def test_refused_reconnect_inside_a_statement_is_an_outage(
    database_url: str,
) -> None:
    """SQLAlchemy connects again inside `execute`: Postgres has ended meanwhile."""
    async with fault_proxy(to_postgres(database_url)) as proxy:
        database = Database(proxied_database_url(database_url, proxy))

        async def read_during_outage() -> None:
            async with database.reading() as connection:
                await connection.execute(sa.select(1))
                await proxy.stop()
                await connection.execute(sa.select(1))

        with pytest.raises(StoreUnavailable):
            await read_during_outage()
        await database.close()
