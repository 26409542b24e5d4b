"""Backs up and restores databases, with the programs that the tests have."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import sqlalchemy as sa

from server.composition.backups import (
    backup_source,
    restore_request,
    restored_stores,
)
from server.composition.resources import open_resources
from server.config import Settings, load
from server.store.backups.archive import Manifest
from server.store.backups.backup import create_backup
from server.store.backups.completion import CompletionOptions, CompletionReport
from server.store.backups.restore import restore_backup
from server.store.connections.connect import Database
from tests.running import SECRET


class Backups:
    """Backs up and restores with the programs of the tests."""

    def __init__(self, programs: Path, redis_url: str) -> None:
        self.programs = programs
        self.redis_url = redis_url

    def settings(self, url: str, **values: object) -> Settings:
        defaults = {"secret_key": SECRET, "pg_bin": self.programs}
        return load(database_url=url, redis_url=self.redis_url, **defaults | values)

    async def back_up(self, url: str, file: Path, **values: object) -> Manifest:
        return await create_backup(
            backup_source(self.settings(url, **values), None), file
        )

    async def restore(
        self,
        url: str,
        file: Path,
        options: CompletionOptions | None = None,
        *,
        replace: bool = False,
        **values: object,
    ) -> CompletionReport:
        settings = self.settings(url, **values)
        options = options or CompletionOptions({})
        request = restore_request(settings, None, file, options, replace=replace)
        async with open_resources(settings) as resources:
            _, report = await restore_backup(restored_stores(resources), request)
        return report


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    """Open a database for a block, so that no session of the test remains."""
    database = Database(url)
    try:
        yield database
    finally:
        await database.close()


async def usernames(url: str) -> list[str]:
    async with opened(url) as database, database.alone() as connection:
        rows = await connection.execute(
            sa.text("select username from users where username <> '' order by id")
        )
        return list(rows.scalars())
