"""Audit events: written with their change, or in the background."""

import asyncio
from datetime import timedelta

import pytest
import sqlalchemy as sa

from server.domain.audit import AuditEvent, AuditFilter, PendingEvent, pending_event
from server.domain.errors import EmailTaken, StoreUnavailable
from server.store import audit as audit_store
from server.store.audit import PostgresAudit
from server.store.connections.connect import Database
from tests.fakes import NOON
from tests.store.conftest import StoresUnderTest
from tests.store.test_users import new


def event(user_id: int = 0, outcome: str = "OK") -> AuditEvent:
    return AuditEvent(0, NOON, "user.created", "anonymous", user_id, "", outcome, "r")


async def outcomes(database: Database) -> list[str]:
    query = sa.text("select outcome from audit_events order by id")
    async with database.reading() as connection:
        return list((await connection.execute(query)).scalars())


async def test_event_is_written_only_with_its_change(
    database: Database, real_stores: StoresUnderTest
) -> None:
    """A change that fails leaves no event that says that it was made."""
    pending_event.set(pending := PendingEvent(event))
    user = await real_stores.users.add(new("ana"))
    assert pending.is_written
    (read,) = await PostgresAudit(database).page(AuditFilter(), None, 5)
    assert (read.user_id, read.at) == (user.id, NOON)
    pending_event.set(pending := PendingEvent(event))
    with pytest.raises(EmailTaken):
        await real_stores.users.add(new("ana"))
    assert not pending.is_written
    assert await outcomes(database) == ["OK"]


async def test_later_events_are_written_in_batches_in_their_order(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, when the process stops at the latest."""
    monkeypatch.setattr(audit_store, "BATCH_SIZE", 2)
    audit = PostgresAudit(database)
    for number in range(5):
        audit.add_later(event(outcome=f"{number}"))
    await audit.drain()
    assert await outcomes(database) == ["0", "1", "2", "3", "4"]


async def test_later_events_are_bounded_and_wait_for_postgres(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls do not wait for them; those beyond the bound are lost, and logged."""
    monkeypatch.setattr(audit_store, "MAX_WAITING", 2)
    database = Database(database_url, statement_timeout=timedelta(milliseconds=100))
    audit = PostgresAudit(database)
    async with database.transaction() as connection:
        await connection.execute(sa.text("lock table audit_events"))
        for number in range(3):
            audit.add_later(event(outcome=f"{number}"))
        with pytest.raises(StoreUnavailable):
            await audit.flush()
    writing = asyncio.create_task(audit.run())
    async with asyncio.timeout(10):
        while await outcomes(database) != ["0", "1"]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    await database.close()
