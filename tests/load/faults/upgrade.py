"""L24: the previous release and this one over one database, during an upgrade."""

import asyncio
import json
import shutil
import sys
from pathlib import Path

from server.store.migrate import newest, required
from tests.load.faults.experiment import Skipped, at_most, experiment
from tests.load.faults.ledger import Ledger
from tests.load.faults.policies import SHIPPED, open_channel
from tests.load.faults.replicas import Process, Testbed, testbed
from tests.load.faults.restarts import lost_rows
from tests.load.faults.stores import ROOT
from tests.load.faults.traffic import Client, calling, sign_up_members
from tests.load.row import ResultRow
from tests.load.service import LIFTED
from tests.previous_release import NoPreviousRelease, previous_release

CALLERS = 40
STEP_SECONDS = 2.0
VERSIONS = "server/store/migrations/versions"
# Only RPCs that the previous release has.
LIMITS: dict[str, list[object]] = {**LIFTED, "blatam.auth.v1.AuthService/Logout": []}
ADDED = "9999"
MIGRATION = '''"""Add a column, a table and an index, as an additive migration does."""

import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{newest}"
branch_labels = depends_on = None


def upgrade() -> None:
    op.add_column("users", sa.Column("nickname", sa.String(50)))
    op.create_table("nicknames", sa.Column("id", sa.BigInteger, primary_key=True))
    op.create_index("idx_posts_title", "posts", ["title"])
'''


@experiment("L24", max_seconds=300)
async def previous_release_is_replaced() -> list[ResultRow]:
    """Migrate under load, then replace one replica after the other."""
    try:
        previous = await asyncio.to_thread(previous_release)
    except NoPreviousRelease as reason:
        raise Skipped(str(reason)) from None
    ledger, revision = Ledger(), _newest_in(previous)
    async with testbed(revision, RATE_LIMITS=json.dumps(LIMITS)) as bed:
        release, target = await asyncio.to_thread(
            _present_release, bed.folder, revision
        )
        replicas = [await bed.started(folder=previous) for _ in range(2)]
        addresses = [replica.grpc for replica in replicas]
        async with open_channel(addresses, SHIPPED) as channel:
            client = Client(channel)
            members = await sign_up_members(client, ledger, "m", CALLERS)
            client.results.clear()
            async with calling(client, ledger, members):
                await asyncio.sleep(STEP_SECONDS)
                await _migrate(bed, release)
                await asyncio.sleep(STEP_SECONDS)
                await replicas[0].restart()  # the previous release, new schema
                await asyncio.sleep(STEP_SECONDS)
                for replica in replicas:
                    await _replace(replica, release)
                    await asyncio.sleep(STEP_SECONDS)
        name = f"revision {revision} to {target} under load: failed"
        row = at_most(name, len(client.failures), 0, "calls", client.summary())
        return [row, *await lost_rows(bed, ledger, addresses)]


def _newest_in(release: Path) -> str:
    """Return the newest revision of a release."""
    return max(path.name for path in (release / VERSIONS).glob("[0-9]*.py"))[:4]


def _present_release(folder: Path, previous_revision: str) -> tuple[Path, str]:
    """Return the folder of this release, and the revision that it requires.

    If it has no migration that the previous release lacks, it is a copy with one.
    """
    if newest() != previous_revision:
        return ROOT, required()
    copy = folder / "release"
    for package in ("server", "edge"):
        shutil.copytree(ROOT / package, copy / package)
    migration = MIGRATION.format(revision=ADDED, newest=newest())
    (copy / VERSIONS / f"{ADDED}_nicknames.py").write_text(migration)
    return copy, ADDED


async def _migrate(bed: Testbed, release: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server", "migrate"),
        cwd=release,
        env={**bed.settings, "PYTHONPATH": str(release)},
        stdout=asyncio.subprocess.DEVNULL,
    )
    assert await process.wait() == 0


async def _replace(replica: Process, release: Path) -> None:
    """Restart a replica with another release."""
    await replica.stop()
    replica.folder = release
    await replica.start()
