"""Starts `academy serve` in a process of its own, which ends by kill -9."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import orjson
import sqlalchemy as sa

from server.store.connections.connect import Database
from server.store.tables import outbox
from tests.environments import through_pooler

ROOT = Path(__file__).parents[1]
TIMEOUT_SECONDS = 30
FREE_PORTS = {"GRPC_LISTEN": "127.0.0.1:0", "HTTP_LISTEN": "127.0.0.1:0"}


@dataclass(frozen=True, slots=True)
class Serving:
    """A running `academy serve`."""

    process: asyncio.subprocess.Process
    grpc_address: str
    channel: grpc.aio.Channel
    rest: str
    log: Path


@asynccontextmanager
async def serving(
    settings: Mapping[str, str],
    command: Sequence[str] = (sys.executable, "-m", "server", "serve"),
    cwd: Path = ROOT,
) -> AsyncIterator[Serving]:
    """Run `academy serve` during the block. It ends by kill -9."""
    with TemporaryDirectory(prefix="blatam-serve-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as log_file:
            process = await asyncio.create_subprocess_exec(
                *command,
                cwd=cwd,
                env={
                    "PATH": os.environ["PATH"],
                    **FREE_PORTS,
                    **through_pooler(settings),
                },
                stderr=log_file,
            )
        try:
            addresses = await _addresses(process, log)
            async with grpc.aio.insecure_channel(addresses["grpc"]) as channel:
                rest = f"http://{addresses['http']}"
                yield Serving(process, addresses["grpc"], channel, rest, log)
                if process.returncode is None:
                    process.kill()
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _addresses(process: asyncio.subprocess.Process, log: Path) -> dict[str, str]:
    """Wait until the process listens and return its addresses by protocol."""
    end = time.monotonic() + TIMEOUT_SECONDS
    while not (line := _listening_line(log)):
        if process.returncode is not None or time.monotonic() > end:
            raise RuntimeError(f"academy serve does not listen; its log: {log}")
        await asyncio.sleep(0.02)
    return line


def _listening_line(log: Path) -> dict[str, str]:
    for line in log.read_bytes().splitlines(keepends=True):
        if b'"listening"' in line and line.endswith(b"\n"):
            return dict(orjson.loads(line))
    return {}


async def settled(database_url: str, seconds: float = TIMEOUT_SECONDS) -> None:
    """Wait until the outbox has no entry to deliver."""
    database = Database(database_url)
    query = sa.select(outbox.c.id).where(outbox.c.state == 0).limit(1)
    async with asyncio.timeout(seconds):
        pending = True
        while pending:
            await asyncio.sleep(0.02)
            async with database.reading() as connection:
                pending = (await connection.execute(query)).first() is not None
    await database.close()
