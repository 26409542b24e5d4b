"""`academy serve` in processes of its own, to be ended by kill -9."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

import grpc
import sqlalchemy as sa

from server.store.connect import Database
from server.store.tables import outbox

ROOT = Path(__file__).parents[1]
SECONDS = 30


def free_address() -> str:
    """Give a loopback address on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


@asynccontextmanager
async def serving(
    settings: Mapping[str, str], log: int | BinaryIO = asyncio.subprocess.DEVNULL
) -> AsyncIterator[grpc.aio.Channel]:
    """Run `academy serve` for as long as the block lasts; it ends by kill -9.

    Give an HTTP_LISTEN to know where REST is.
    """
    listens = {"GRPC_LISTEN": free_address(), "HTTP_LISTEN": free_address()}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "server", "serve"),
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **listens, **settings},
        stderr=log,
    )
    try:
        async with grpc.aio.insecure_channel(listens["GRPC_LISTEN"]) as channel:
            async with asyncio.timeout(SECONDS):
                await channel.channel_ready()
            yield channel
            process.kill()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def settled(database_url: str, seconds: float = SECONDS) -> None:
    """Wait until nothing is left to deliver."""
    database = Database(database_url)
    query = sa.select(outbox.c.id).where(outbox.c.state == 0).limit(1)
    async with asyncio.timeout(seconds):
        left = True
        while left:
            await asyncio.sleep(0.02)
            async with database.reading() as connection:
                left = (await connection.execute(query)).first() is not None
    await database.close()
