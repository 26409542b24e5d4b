"""What the peers' build.sh made: build/peers/NAME, with the version in a file."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import asyncpg

from tests.load.loader import ROOT
from tests.load.service import Service


def folder(name: str) -> Path:
    """Return the folder of a built peer."""
    return ROOT / "build" / "peers" / name


def version(name: str) -> str | None:
    """Return the version of a peer, or None if it is not built."""
    file = folder(name) / "version"
    return file.read_text().strip() if file.exists() else None


def new_database(service: Service, name: str, prepare: Sequence[str] = ()) -> Path:
    """Create a database in the service's Postgres and prepare it by statements.

    Return the folder of the socket of Postgres.
    """
    folder = service.folder / "state" / "pgdata"

    async def execute(database: str, statements: Sequence[str]) -> None:
        address = {"host": str(folder), "user": "blatam", "database": database}
        connection = await asyncpg.connect(**address)
        for statement in statements:
            await connection.execute(statement)
        await connection.close()

    asyncio.run(execute("postgres", [f"create database {name}"]))
    asyncio.run(execute(name, prepare))
    return folder
