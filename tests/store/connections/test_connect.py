"""Connections of the pool while Postgres is silent."""

import asyncio

import pytest

from server.store.connections.connect import PING_TIMEOUT_SECONDS, Database
from tests.silent_proxy import silent_proxy


async def test_cancelled_check_of_silent_connection_ends_at_once(
    database_url: str,
) -> None:
    """The caller does not wait until Postgres confirms the end of the connection."""
    async with silent_proxy(database_url) as proxy:
        database = Database(proxy.url)
        await database.ping()
        proxy.silent = True
        started = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(PING_TIMEOUT_SECONDS / 4):
                async with database.reading() as c:
                    import sqlalchemy as sa
                    await c.execute(sa.select(1))
        assert asyncio.get_running_loop().time() - started < PING_TIMEOUT_SECONDS
        proxy.silent = False
        await database.close()
