"""The environments of `make test-matrix`: which Postgres and Redis the tests run with.

TEST_ENVIRONMENT names one; each process of pytest starts its servers. In the default,
`embedded`, TEST_DATABASE_URL and TEST_REDIS_URL replace the servers.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import sqlalchemy as sa

from server.embedded.servers import EmbeddedServers
from tests.pgbouncer import BINARY as PGBOUNCER
from tests.pgbouncer import pgbouncer
from tests.postgres_server import PostgresServer
from tests.valkey_nodes import valkey_cluster

DEFAULT = "embedded"
# HOST:PORT of the pooler in transaction mode in front of a Postgres, by its socket.
POOLERS: dict[str, str] = {}
POOLER_CONNECTIONS = 10
NOWHERE = "redis://127.0.0.1:1"
DEBIAN_POSTGRES = Path("/usr/lib/postgresql/15/bin")


@dataclass(frozen=True, slots=True)
class Servers:
    """The URLs of Postgres and Redis. The tests may delete all data in both."""

    database_url: str
    redis_url: str


@dataclass(frozen=True, slots=True)
class Environment:
    """What starts the servers, and a program that it needs with its Debian package."""

    open: Callable[[EmbeddedServers, Path, ExitStack], Servers]
    program: Path = Path("/")
    package: str = ""


def environment() -> str:
    """Return the name of the environment of this process."""
    return os.environ.get("TEST_ENVIRONMENT", DEFAULT)


@contextmanager
def open_servers(state: Path) -> Iterator[Servers]:
    """Start the servers of the environment; stop them after the block."""
    embedded = EmbeddedServers(state, durable=False)
    with ExitStack() as stack:
        stack.callback(embedded.stop)
        yield ENVIRONMENTS[environment()].open(embedded, state, stack)


def through_pooler(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the settings of a service, with the pooler of its Postgres if it has one.

    A URL that names a host may be that of a proxy in front of the pooler.
    """
    values = dict(settings)
    url = sa.make_url(values.get("DATABASE_URL", "postgresql://"))
    pooler = POOLERS.get(str(url.query.get("host", "")))
    if pooler or (url.host and POOLERS):
        values.setdefault("DATABASE_POOLER", "transaction")
    if pooler:
        values["DATABASE_URL"] = f"postgresql://{url.username}@{pooler}/{url.database}"
    return values


def _embedded(embedded: EmbeddedServers, _state: Path, _stack: ExitStack) -> Servers:
    return Servers(
        os.environ.get("TEST_DATABASE_URL") or embedded.start_postgres(),
        os.environ.get("TEST_REDIS_URL") or embedded.start_valkey(),
    )


def _debian(embedded: EmbeddedServers, state: Path, stack: ExitStack) -> Servers:
    server = PostgresServer(DEBIAN_POSTGRES, state / "debian")
    server.initialise()
    stack.callback(server.stop)
    server.start()
    return Servers(server.url(), embedded.start_valkey())


def _pooled(embedded: EmbeddedServers, _state: Path, stack: ExitStack) -> Servers:
    direct = embedded.start_postgres()
    pooled = stack.enter_context(pgbouncer(direct, POOLER_CONNECTIONS))
    socket = str(sa.make_url(direct).query["host"])
    POOLERS[socket] = urlsplit(pooled).netloc.rpartition("@")[2]
    return Servers(direct, embedded.start_valkey())


def _without_redis(
    embedded: EmbeddedServers, _state: Path, _stack: ExitStack
) -> Servers:
    return Servers(embedded.start_postgres(), NOWHERE)


def _valkey_cluster(
    embedded: EmbeddedServers, _state: Path, stack: ExitStack
) -> Servers:
    cluster = stack.enter_context(valkey_cluster())
    return Servers(embedded.start_postgres(), cluster.url)


ENVIRONMENTS: dict[str, Environment] = {
    DEFAULT: Environment(_embedded),
    "postgres15": Environment(_debian, DEBIAN_POSTGRES / "postgres", "postgresql-15"),
    "pgbouncer": Environment(
        _pooled, Path(PGBOUNCER or "/usr/sbin/pgbouncer"), "pgbouncer"
    ),
    "valkey-cluster": Environment(_valkey_cluster),
    "no-redis": Environment(_without_redis),
}
