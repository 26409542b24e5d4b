"""L25: the primary of a synchronous replica is killed, and the replica is promoted."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import sqlalchemy as sa

from server.embedded.wheels import postgres_binaries
from server.store.connections.connect import Database
from server.store.migrate import upgrade
from tests.load.faults.experiment import at_most, experiment
from tests.load.faults.ledger import Ledger
from tests.load.faults.policies import SHIPPED, open_channel
from tests.load.faults.postgres import gap
from tests.load.faults.replicas import Testbed, testbed
from tests.load.faults.restarts import lost_rows
from tests.load.faults.traffic import Client, calling, sign_up_members
from tests.load.row import ResultRow
from tests.load.service import free_address
from tests.postgres_server import USER, PostgresServer

CALLERS = 40
BEFORE_SECONDS, AFTER_SECONDS = 3.0, 12.0
# between the failure and the promotion: what a cluster manager needs at best
DETECTION_SECONDS = 1.0
NEED_POSTGRES = {"ListPosts", "CreatePost"}
SYNCHRONOUS = "select count(*) from pg_stat_replication where sync_state = 'sync'"


class Pair:
    """A primary, and its replica, which has stored a commit before it is answered."""

    def __init__(self, folder: Path) -> None:
        binaries = postgres_binaries(folder)
        ports = [int(free_address().rpartition(":")[2]) for _ in range(2)]
        # on the command line, so that the replica does not copy it
        synchronous = ("--synchronous_standby_names=*",)
        self.primary = PostgresServer(
            binaries, folder / "primary", synchronous, ports[0]
        )
        self.replica = PostgresServer(binaries, folder / "replica", (), ports[1])
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        self.url = (
            f"postgresql://{USER}@{hosts}/academy?target_session_attrs=read-write"
        )

    def start(self) -> None:
        """Start both."""
        self.primary.initialise()
        self.primary.start()
        self.replica.copy(self.primary)
        self.replica.start()

    async def create_database(self) -> None:
        """Create the database of the URL, with the newest schema, in both."""
        server = Database(self.primary.url())
        async with server.alone() as connection:
            async with asyncio.timeout(30):
                while (await connection.execute(sa.text(SYNCHRONOUS))).scalar() == 0:  # noqa: ASYNC110 - asked of Postgres
                    await asyncio.sleep(0.05)
            await connection.execute(sa.text("create database academy"))
        await server.close()
        await upgrade(Database(self.url))


@asynccontextmanager
async def replicated() -> AsyncIterator[tuple[Testbed, Pair]]:
    """Start a testbed whose database has a replica."""
    async with testbed() as bed:
        pair = Pair(bed.folder)
        try:
            pair.start()
            await pair.create_database()
            await bed.database.close()
            bed.database = Database(pair.url)
            bed.settings["DATABASE_URL"] = pair.url
            yield bed, pair
        finally:
            await bed.database.close()
            pair.primary.stop()
            pair.replica.stop()


@experiment("L25", max_seconds=240)
async def replica_is_promoted() -> list[ResultRow]:
    """Kill the primary while callers write; compare what was acknowledged."""
    ledger = Ledger()
    async with replicated() as (bed, pair):
        replica = await bed.started()
        async with open_channel([replica.grpc], SHIPPED) as channel:
            client = Client(channel)
            members = await sign_up_members(client, ledger, "m", CALLERS)
            client.results.clear()
            async with calling(client, ledger, members):
                await asyncio.sleep(BEFORE_SECONDS)
                killed_at = time.monotonic()
                pair.primary.kill()
                await asyncio.sleep(DETECTION_SECONDS)
                await asyncio.to_thread(pair.replica.promote)
                promoted = time.monotonic() - killed_at
                await asyncio.sleep(AFTER_SECONDS)
        needing = [r for r in client.results if r.method in NEED_POSTGRES]
        notes = f"promoted after {promoted:.1f} s; {client.summary()}"
        name = "primary killed, replica promoted: last failed call after"
        row = at_most(name, gap(needing, killed_at), 10, "s", notes)
        return [row, *await lost_rows(bed, ledger, [replica.grpc])]
