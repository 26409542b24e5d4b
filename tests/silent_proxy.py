"""A TCP proxy in front of Postgres that can drop every packet, or be away."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.fault_proxy import FaultProxy, proxied_database_url, to_postgres


class SilentProxy(FaultProxy):
    """A fault proxy in front of a database of an embedded Postgres."""

    def __init__(self, database_url: str) -> None:
        super().__init__(to_postgres(database_url))
        self._database_url = database_url

    @property
    def url(self) -> str:
        """The URL of the database through this proxy."""
        return proxied_database_url(self._database_url, self)


@asynccontextmanager
async def silent_proxy(database_url: str) -> AsyncIterator[SilentProxy]:
    """Run a proxy in front of this database."""
    proxy = SilentProxy(database_url)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
