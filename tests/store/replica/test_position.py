"""Positions: which servers are replicas of each other, and when one is complete."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import asyncpg
import pytest

from server.store.connections.connect import Database
from server.store.pool.statement import Statement
from server.store.replica.position import ServerPosition, mismatch, position_of
from server.store.replica.replica import Replica

MAX_LAG = timedelta(seconds=0.5)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
PRIMARY = ServerPosition(False, 1_000, NOON, None, 7, 5)
STANDBY = replace(PRIMARY, is_standby=True, started_at=NOON + timedelta(hours=1))


@dataclass
class FakeServer:
    """Answers with its position; `is_degraded` is what a Database would say."""

    position: ServerPosition
    is_degraded: bool = False

    async def run(self, _: Statement, **__: Any) -> Sequence[asyncpg.Record]:
        return cast(Sequence[asyncpg.Record], [asdict(self.position)])

    def write(self, size: int) -> None:
        self.position = replace(self.position, bytes=self.position.bytes + size)


def compared(primary: FakeServer, standby: FakeServer) -> Replica:
    return Replica(cast(Database, primary), cast(Database, standby), MAX_LAG)


@pytest.mark.parametrize(
    ("replica", "problem"),
    [
        (STANDBY, ""),
        (PRIMARY, ""),
        (replace(STANDBY, cluster=8), "another database"),
        (replace(STANDBY, database=6), "another database"),
        (replace(STANDBY, is_standby=False), "promoted"),
        (replace(STANDBY, bytes=1_001), "changes that the primary does not have"),
    ],
)
def test_only_a_standby_of_the_primary_is_its_replica(
    replica: ServerPosition, problem: str
) -> None:
    found = mismatch(PRIMARY, replica)
    assert problem in found
    assert bool(found) is bool(problem)


@pytest.mark.parametrize(
    ("position", "end"),
    [(8192 + 24, 8192), (2**24 + 40, 2**24), (8192 + 48, 8192 + 48), (8192, 8192)],
)
async def test_position_behind_a_page_header_is_the_end_of_the_page(
    position: int, end: int
) -> None:
    """Else an idle replica would never have replayed what the primary wrote."""
    server = FakeServer(replace(PRIMARY, bytes=position))
    assert (await position_of(server)).bytes == end  # type: ignore[arg-type]


async def test_replica_is_complete_until_the_last_position_that_it_replayed() -> None:
    """The lag is the time since then, not since the last comparison."""
    primary, standby = FakeServer(PRIMARY), FakeServer(STANDBY)
    replica = compared(primary, standby)
    assert replica.lag is None
    assert not replica.is_usable
    assert not replica.is_degraded  # it is not known yet
    await replica.refresh()
    assert replica.is_usable
    primary.write(100)
    async with asyncio.timeout(10):
        while replica.is_usable:
            await replica.refresh()
            await asyncio.sleep(0.01)
    assert replica.is_degraded
    standby.write(100)
    await replica.refresh()
    assert replica.is_usable


async def test_replica_that_is_compared_no_more_is_not_used() -> None:
    replica = compared(FakeServer(PRIMARY), FakeServer(STANDBY))
    await replica.refresh()
    assert replica.is_usable
    await asyncio.sleep(0.51)
    assert not replica.is_usable


async def test_replica_that_does_not_answer_is_not_used() -> None:
    standby = FakeServer(STANDBY)
    replica = compared(FakeServer(PRIMARY), standby)
    await replica.refresh()
    standby.is_degraded = True
    assert not replica.is_usable


async def test_replica_that_was_ahead_is_not_complete_when_the_primary_passes_it() -> (
    None
):
    """After a failover to a server that had received less than the replica."""
    primary, standby = FakeServer(PRIMARY), FakeServer(STANDBY)
    replica = compared(primary, standby)
    await replica.refresh()
    standby.write(100)  # the old primary's last changes
    await replica.refresh()
    assert not replica.is_usable
    primary.write(200)  # the new primary's
    await replica.refresh()
    assert not replica.is_usable
