"""`academy serve` in processes of its own, to be ended by kill -9."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import orjson
import sqlalchemy as sa

from server.store.connect import Database
from server.store.tables import outbox

ROOT = Path(__file__).parents[1]
SECONDS = 30
ANYWHERE = {"GRPC_LISTEN": "127.0.0.1:0", "HTTP_LISTEN": "127.0.0.1:0"}


@dataclass(frozen=True, slots=True)
class Serving:
    """An `academy serve` that listens."""

    channel: grpc.aio.Channel
    rest: str
    log: Path


@asynccontextmanager
async def serving(settings: Mapping[str, str]) -> AsyncIterator[Serving]:
    """Run `academy serve` for as long as the block lasts; it ends by kill -9."""
    with TemporaryDirectory(prefix="blatam-serve-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as said:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "server", "serve"),
                cwd=ROOT,
                env={"PATH": os.environ["PATH"], **ANYWHERE, **settings},
                stderr=said,
            )
        try:
            told = await _listening(process, log)
            async with grpc.aio.insecure_channel(told["grpc"]) as channel:
                yield Serving(channel, f"http://{told['http']}", log)
                process.kill()
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _listening(process: asyncio.subprocess.Process, log: Path) -> dict[str, str]:
    """Wait for the line that tells where it listens; give it."""
    end = time.monotonic() + SECONDS
    while not (told := _told(log)):
        if process.returncode is not None or time.monotonic() > end:
            raise RuntimeError(f"{log} is of an academy serve that does not listen")
        await asyncio.sleep(0.02)
    return told


def _told(log: Path) -> dict[str, str]:
    for line in log.read_bytes().splitlines(keepends=True):
        if b'"listening"' in line and line.endswith(b"\n"):
            return dict(orjson.loads(line))
    return {}


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
