"""Fixtures: real Postgres and Valkey, with a database and a key space per test."""

import asyncio
import inspect
import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import pytest_asyncio
import sqlalchemy as sa
import uvloop
from pytest_asyncio.plugin import PytestAsyncioFunction
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from server.embedded.servers import EmbeddedServers
from server.embedded.wheels import client_folder
from server.store.backups.errors import BackupError
from server.store.backups.programs import find_programs, search_path
from server.store.connections.connect import Database
from server.store.migrate import upgrade
from server.store.redis.redis_url import Mode, parse_redis_url
from tests.backups import Backups
from tests.environments import Servers as Servers  # which tests import from here
from tests.environments import environment, open_servers
from tests.redis_nodes import flush, with_database
from tests.running import RunningService, running

START_SECONDS = 30
TEMPLATE = "blatam_template"
KEY_SPACES = 8  # of one process; Redis has sixteen, unless configured otherwise
# Tests start processes while gRPC runs. Its fork handlers serve children that do not
# exec; here they could hang or write to the child's standard error.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"


def pytest_asyncio_loop_factories() -> Mapping[
    str, Callable[[], asyncio.AbstractEventLoop]
]:
    """Run the tests on the event loop that the service uses."""
    return {"uvloop": uvloop.new_event_loop}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse synchronous tests with asynchronous fixtures.

    They have no event loop parameter. A fixture that they are the first to need ends
    the event loop of the session, and with it the service that all tests share.
    """
    for item in items:
        if isinstance(item, pytest.Function) and not isinstance(
            item, PytestAsyncioFunction
        ):
            fixtures = item._fixtureinfo.name2fixturedefs.values()
            if any(is_asynchronous(f.func) for group in fixtures for f in group):
                raise pytest.UsageError(f"{item.nodeid} must be async")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that cannot hold with the servers of TEST_ENVIRONMENT."""
    for mark in item.iter_markers("unsupported_in"):
        if environment() in mark.args:
            pytest.skip(f"{environment()}: {mark.kwargs['reason']}")


def is_asynchronous(function: Callable[..., object]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


@contextmanager
def open_folder() -> Iterator[Path]:
    """Return a temporary folder that the account of Postgres may enter.

    pytest's own folder is closed to it; then root's databases would be created
    elsewhere and never be removed.
    """
    folder = Path(tempfile.mkdtemp(prefix="blatam-test-", dir="/tmp"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """Return a folder for STATE_DIR."""
    with open_folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """Return the servers of TEST_ENVIRONMENT; those of this process, by default."""
    with open_folder() as state, open_servers(state) as opened:
        yield opened


@pytest_asyncio.fixture(scope="session")
async def admin(servers: Servers) -> AsyncIterator[AsyncEngine]:
    """Return the engine that creates and drops databases."""
    url = sa.make_url(servers.database_url).set(database="postgres")
    engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
    yield engine
    await engine.dispose()


@pytest_asyncio.fixture(scope="session")
async def template(servers: Servers, admin: AsyncEngine) -> AsyncIterator[str]:
    """Return the name of a migrated database that tests copy and never change."""
    await run(admin, f"drop database if exists {TEMPLATE} with (force)")
    await run(admin, f"create database {TEMPLATE}")
    await upgrade(Database(url_of(servers, TEMPLATE)))
    yield TEMPLATE
    await run(admin, f"drop database {TEMPLATE} with (force)")


@asynccontextmanager
async def fresh_database(
    servers: Servers, admin: AsyncEngine, template: str
) -> AsyncIterator[str]:
    """Return the URL of a migrated, empty database."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    await run(admin, f"create database {name} template {template} {strategy(admin)}")
    yield url_of(servers, name)
    await run(admin, f"drop database {name} with (force)")


@pytest_asyncio.fixture
async def database_url(
    servers: Servers, admin: AsyncEngine, template: str
) -> AsyncIterator[str]:
    """Return the URL of a database for one test."""
    async with fresh_database(servers, admin, template) as url:
        yield url


@pytest_asyncio.fixture
async def empty_url(servers: Servers, admin: AsyncEngine) -> AsyncIterator[str]:
    """Return the URL of a database without tables, for one test."""
    name = f"empty_{uuid.uuid4().hex[:8]}"
    await run(admin, f"create database {name}")
    yield url_of(servers, name)
    await run(admin, f"drop database {name} with (force)")


@pytest_asyncio.fixture(scope="session")
async def postgres_programs(admin: AsyncEngine) -> Path:
    """Return the folder of pg_dump and pg_restore for the tests' Postgres."""
    await run(admin, "select 1")
    version = int((admin.dialect.server_version_info or (0,))[0])
    installed = client_folder()
    folders = [*search_path(), *([installed] if installed else [])]
    try:
        return (await find_programs(folders, version)).folder
    except BackupError as error:
        pytest.skip(str(error))


@pytest.fixture
def backups(postgres_programs: Path, redis_url: str) -> Backups:
    """Return what backs up and restores, with the key space of the test."""
    return Backups(postgres_programs, redis_url)


@pytest_asyncio.fixture(scope="session")
async def shared(
    servers: Servers, admin: AsyncEngine, template: str
) -> AsyncIterator[RunningService]:
    """Return one service for all tests that leave only new accounts behind."""
    async with (
        fresh_database(servers, admin, template) as url,
        running(url, key_space(servers, 1)) as started,
    ):
        await ready(started)
        yield started


async def ready(service: RunningService) -> None:
    """Wait until calls are served, which a slow Postgres delays."""
    async with asyncio.timeout(START_SECONDS):
        while not (await service.http.get("/readyz")).is_success:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@pytest.fixture(scope="session")
def one_redis(servers: Servers) -> Iterator[str]:
    """Return the URL of a Redis of one server, even if TEST_REDIS_URL has several."""
    if parse_redis_url(servers.redis_url).mode is Mode.SERVER:
        yield servers.redis_url
        return
    with open_folder() as state:
        embedded = EmbeddedServers(state, durable=False)
        try:
            yield embedded.start_valkey()
        finally:
            embedded.stop()


@pytest.fixture
def redis_server_url(one_redis: str) -> str:
    """Return the URL of an empty key space of one server, for one test."""
    url = with_database(one_redis, 0)
    flush(url)
    return url


@pytest.fixture
def redis_url(servers: Servers) -> str:
    """Return the URL of an empty key space for one test."""
    return key_space(servers, 0)


def key_space(servers: Servers, number: int) -> str:
    """Return the URL of one of Redis' sixteen key spaces, emptied.

    A service that outlives a test needs its own: user ids start at 1 in each database,
    and services with one key space would count the log-ins of user 1 together.
    """
    url = with_database(servers.redis_url, number + KEY_SPACES * _worker())
    flush(url)
    return url


def _worker() -> int:
    """Return the number of this process: all of them share the server of a URL."""
    if not os.environ.get("TEST_REDIS_URL"):
        return 0  # each process has a server of its own
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


async def run(admin: AsyncEngine, statement: str) -> None:
    async with admin.connect() as connection:
        await connection.execute(sa.text(statement))


def url_of(servers: Servers, database: str) -> str:
    url = sa.make_url(servers.database_url).set(database=database)
    return url.render_as_string(hide_password=False)


def strategy(admin: AsyncEngine) -> str:
    """Copy through the write-ahead log: copying files waits for two checkpoints."""
    version = admin.dialect.server_version_info or (0,)
    return "strategy wal_log" if version >= (15,) else ""
