"""Processes of the service that can be stopped, killed and started again."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import orjson

from server.store.connections.connect import Database
from server.store.migrate import upgrade
from tests.load.faults.stores import ROOT, Stores, open_stores
from tests.load.service import free_address
from tests.running import NO_LIMITS

START_SECONDS = 60
STOP_SECONDS = 60
POLL_SECONDS = 0.02
SERVE = ("-m", "server", "serve")


@dataclass
class Process:
    """A process with a log, on addresses that stay the same over its restarts."""

    settings: dict[str, str]
    log: Path
    command: Sequence[str] = SERVE
    folder: Path = ROOT
    grpc: str = field(default_factory=free_address)
    rest: str = field(default_factory=free_address)
    child: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """The number of the running process."""
        assert self.child
        return self.child.pid

    @property
    def url(self) -> str:
        """The URL of its REST interface."""
        return f"http://{self.rest}"

    async def launch(self) -> None:
        """Start the process; do not wait until it listens."""
        inherited = {"PATH": os.environ["PATH"], "PYTHONPATH": str(self.folder)}
        addresses = {"GRPC_LISTEN": self.grpc, "HTTP_LISTEN": self.rest}
        with self.log.open("ab") as sink:
            self.child = await asyncio.create_subprocess_exec(
                *(sys.executable, *self.command),
                cwd=self.folder,
                env={**inherited, **addresses, **self.settings},
                stdout=sink,
                stderr=sink,
            )

    async def start(self) -> None:
        """Start the process and wait until it is ready."""
        await self.launch()
        await self.until_ready()

    async def until_ready(self) -> None:
        """Wait until /readyz answers 200."""
        async with httpx.AsyncClient() as http, asyncio.timeout(START_SECONDS):
            while not await self.is_ready(http):
                assert self.child
                if self.child.returncode is not None:
                    raise RuntimeError(f"it has ended:\n{self.log.read_text()[-3000:]}")
                await asyncio.sleep(POLL_SECONDS)

    async def is_ready(self, http: httpx.AsyncClient) -> bool:
        """Return whether /readyz answers 200."""
        with suppress(httpx.HTTPError):
            return (await http.get(f"{self.url}/readyz", timeout=1)).is_success
        return False

    async def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        assert self.child
        self.child.terminate()
        async with asyncio.timeout(STOP_SECONDS):
            return await self.child.wait()

    async def kill(self) -> None:
        """End the process by SIGKILL."""
        if self.child and self.child.returncode is None:
            self.child.send_signal(signal.SIGCONT)
            self.child.kill()
            await self.child.wait()

    async def restart(self) -> int:
        """Stop it, start it again, and return the exit code."""
        code = await self.stop()
        await self.start()
        return code

    def calls(self) -> list[dict[str, Any]]:
        """Return the log lines of calls."""
        lines = (
            line for line in self.log.read_bytes().splitlines() if line[:1] == b"{"
        )
        parsed = (orjson.loads(line) for line in lines)
        return [line for line in parsed if line.get("event") == "call"]


@dataclass
class Testbed:
    """Stores of an experiment, and the processes that it starts."""

    folder: Path
    stores: Stores
    settings: dict[str, str]
    database: Database
    _stack: AsyncExitStack
    _count: int = 0

    def process(
        self,
        settings: Mapping[str, str] | None = None,
        command: Sequence[str] = SERVE,
        folder: Path = ROOT,
    ) -> Process:
        """Return a process that ends with the testbed; it is not started yet."""
        self._count += 1
        log = self.folder / f"{self._count}.log"
        process = Process({**self.settings, **(settings or {})}, log, command, folder)
        self._stack.push_async_callback(process.kill)
        return process

    async def started(
        self, settings: Mapping[str, str] | None = None, **arguments: Any
    ) -> Process:
        """Start a process and return it once it is ready."""
        process = self.process(settings, **arguments)
        await process.start()
        return process


@asynccontextmanager
async def testbed(
    revision: str = "head",  # noqa: PT028 - this is no test
    **settings: str,
) -> AsyncIterator[Testbed]:
    """Start the stores with a schema, the newest; end every process after the block."""
    with TemporaryDirectory(prefix="blatam-bench-", dir="/tmp") as name:
        folder = Path(name)
        os.chmod(name, 0o755)
        async with open_stores(folder / "stores") as stores, AsyncExitStack() as stack:
            database = Database(stores.database_url)
            stack.push_async_callback(database.close)
            await upgrade(database, revision)
            values = {
                "DATABASE_URL": stores.database_url,
                "REDIS_URL": stores.redis_url,
                "SECRET_KEY": "0123456789abcdef" * 2,
                "STATE_DIR": str(folder / "state"),
                "RATE_LIMITS": orjson.dumps(NO_LIMITS).decode(),
                "MAX_SESSIONS": "1000",  # callers log in again and again
                "LOG_FORMAT": "json",
                **settings,
            }
            yield Testbed(folder, stores, values, database, stack)


async def seconds_until(
    succeeds: Any, max_seconds: float = 30.0, interval: float = POLL_SECONDS
) -> float:
    """Repeat a coroutine function until it returns true; return the seconds."""
    started = time.monotonic()
    async with asyncio.timeout(max_seconds):
        while not await succeeds():  # noqa: ASYNC110 - a process is asked
            await asyncio.sleep(interval)
    return time.monotonic() - started
