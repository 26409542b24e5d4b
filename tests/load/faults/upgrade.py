"""L24: this release and a next one, with an added migration, side by side."""

import asyncio
import shutil
import sys
from pathlib import Path

from server.store.migrate import newest
from tests.load.faults.experiment import at_most, experiment
from tests.load.faults.ledger import Ledger
from tests.load.faults.policies import SHIPPED, open_channel
from tests.load.faults.replicas import Process, Testbed, testbed
from tests.load.faults.restarts import lost_rows
from tests.load.faults.stores import ROOT
from tests.load.faults.traffic import Client, calling, sign_up_members
from tests.load.row import ResultRow

CALLERS = 40
STEP_SECONDS = 2.0
MIGRATION = '''"""Add a column, a table and an index, as an additive migration does."""

import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "{newest}"
branch_labels = depends_on = None


def upgrade() -> None:
    op.add_column("users", sa.Column("nickname", sa.String(50)))
    op.create_table("nicknames", sa.Column("id", sa.BigInteger, primary_key=True))
    op.create_index("idx_posts_title", "posts", ["title"])
'''


@experiment("L24", max_seconds=240)
async def releases_run_side_by_side() -> list[ResultRow]:
    """Migrate under load, then replace one replica after the other."""
    ledger = Ledger()
    async with testbed() as bed:
        release = bed.folder / "release"
        await asyncio.to_thread(_copy_release, release)
        replicas = [await bed.started() for _ in range(2)]
        addresses = [replica.grpc for replica in replicas]
        async with open_channel(addresses, SHIPPED) as channel:
            client = Client(channel)
            members = await sign_up_members(client, ledger, "m", CALLERS)
            client.results.clear()
            async with calling(client, ledger, members):
                await asyncio.sleep(STEP_SECONDS)
                await _migrate(bed, release)
                await asyncio.sleep(STEP_SECONDS)
                await replicas[0].restart()  # this release over the new schema
                await asyncio.sleep(STEP_SECONDS)
                for replica in replicas:
                    await _replace(replica, release)
                    await asyncio.sleep(STEP_SECONDS)
        name = "this release and the next over one database: failed"
        row = at_most(name, len(client.failures), 0, "calls", client.summary())
        return [row, *await lost_rows(bed, ledger, addresses)]


def _copy_release(folder: Path) -> None:
    """Copy the code, with one migration more."""
    for package in ("server", "edge"):
        shutil.copytree(ROOT / package, folder / package)
    versions = folder / "server/store/migrations/versions"
    (versions / "9999_nicknames.py").write_text(MIGRATION.format(newest=newest()))


async def _migrate(bed: Testbed, release: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server", "migrate"),
        cwd=release,
        env={**bed.settings, "PYTHONPATH": str(release)},
        stdout=asyncio.subprocess.DEVNULL,
    )
    assert await process.wait() == 0


async def _replace(replica: Process, release: Path) -> None:
    """Restart a replica with the next release."""
    await replica.stop()
    replica.folder = release
    await replica.start()
