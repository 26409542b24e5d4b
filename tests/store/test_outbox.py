"""The outbox: entries are written with the change and claimed by one process."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from server.domain.accounts.users import NewUser, Role, UserEdit
from server.domain.credentials.sessions import Session
from server.domain.errors import EmailTaken, EtagMismatch, LastAdmin
from server.domain.outbox.entries import Entry, EventType, NewEntry, Queue
from server.store.change_records import record
from server.store.connections.connect import Database
from server.store.credentials.sessions import PostgresSessions
from server.store.outbox import BACKLOG, Backlog, PostgresOutbox
from server.store.tables import outbox, outbox_queue
from tests.fakes import NOON, FakeSessions
from tests.store.conftest import StoresUnderTest

MINUTE, NO_TIME = timedelta(minutes=1), timedelta(0)
LONG_AGO = NOON - timedelta(days=30)


@dataclass(frozen=True, slots=True)
class WrittenEvent:
    """The columns of an event that the tests compare."""

    kind: str
    user_id: int | None
    version: int


async def written_events(database: Database) -> list[WrittenEvent]:
    """Return the events, in the order in which streams read them."""
    query = sa.select(outbox).where(outbox.c.kind.like("user.%")).order_by(outbox.c.id)
    async with database.reading() as connection:
        rows = (await connection.execute(query)).all()
    return [WrittenEvent(row.kind, row.user_id, row.payload["version"]) for row in rows]


def new(name: str, role: Role = Role.STUDENT) -> NewUser:
    return NewUser(f"{name}@example.com", name, "hash", role, NOON)


async def logged_in(
    sessions: FakeSessions | PostgresSessions, user_id: int, version: int
) -> UUID:
    session = Session(
        id=uuid4(),
        user_id=user_id,
        token_hash=b"1",
        parent_hash=b"",
        nonce=b"",
        created_at=NOON,
        last_used_at=NOON,
        expires_at=NOON + MINUTE,
        address="192.0.2.1",
        device="Phone",
    )
    assert await sessions.add(session, version)
    return session.id


async def test_outbox_holds_event_for_every_change_of_account(
    real_stores: StoresUnderTest, database: Database
) -> None:
    """Each event is written in the transaction of its change, with its version."""
    users, sessions = real_stores.users, real_stores.sessions
    ana = await users.add(new("ana"))
    await users.edit(ana.id, UserEdit({"username": "anna"}, "", NOON))
    account = await real_stores.accounts.account_by_id(ana.id)
    assert account
    session = await logged_in(sessions, ana.id, account.version)
    assert await sessions.change_password(account, "hash", session, NOON)
    await users.delete(ana.id, NOON)
    await users.undelete(ana.id, LONG_AGO, NOON)
    kinds = ["created", "updated", "updated", "deleted", "undeleted"]
    assert await written_events(database) == [
        WrittenEvent(f"user.{kind}", ana.id, version)
        for version, kind in enumerate(kinds, start=1)
    ]


async def test_outbox_holds_no_event_for_refused_or_empty_change(
    real_stores: StoresUnderTest, database: Database
) -> None:
    ana = await real_stores.users.add(new("ana", Role.ADMIN))
    with pytest.raises(EmailTaken):
        await real_stores.users.add(
            NewUser("ana@example.com", "bea", "", Role.STUDENT, NOON)
        )
    await real_stores.users.edit(ana.id, UserEdit({"username": "ana"}, "", NOON))
    with pytest.raises(LastAdmin):
        await real_stores.users.delete(ana.id, NOON)
    assert await written_events(database) == [WrittenEvent("user.created", ana.id, 1)]


@pytest.fixture
def store(database: Database) -> PostgresOutbox:
    return PostgresOutbox(database)


async def claimed(
    store: PostgresOutbox, lease: timedelta = MINUTE, *, mails: bool = True
) -> list[Entry]:
    queues = Queue if mails else [Queue.EVENTS]
    return list(await store.claim(dict.fromkeys(queues, 10), lease))


MAIL = NewEntry(EventType.NEW_DEVICE, 7, "a@x.co", {"device": "Phone"})
EVENT = NewEntry(EventType.USER_UPDATED, 7, payload={"version": 2})


async def test_outbox_entry_is_claimed_by_one_process(store: PostgresOutbox) -> None:
    """It is claimed again when the lease has expired: the process may have died."""
    await store.add(NOON, *[MAIL] * 25)
    batches = await asyncio.gather(*(claimed(store, NO_TIME) for _ in range(2)))
    ids = [entry.id for batch in batches for entry in batch]
    assert len(set(ids)) == 20
    assert batches[0][0].payload == MAIL.payload
    again = await claimed(store)
    assert {entry.attempts for entry in again} == {1, 2}
    assert not {e.id for e in again} & {e.id for e in await claimed(store)}


async def test_outbox_lease_is_renewed(store: PostgresOutbox) -> None:
    await store.add(NOON, MAIL)
    (entry,) = await claimed(store, NO_TIME)
    await store.renew([entry.id], MINUTE)
    assert not await claimed(store)


async def test_outbox_released_entry_counts_no_attempt(store: PostgresOutbox) -> None:
    await store.add(NOON, MAIL)
    (entry,) = await claimed(store)
    await store.release([entry.id])
    (again,) = await claimed(store)
    assert (again.id, again.attempts) == (entry.id, 1)


async def test_outbox_claim_skips_mails_on_request(store: PostgresOutbox) -> None:
    await store.add(NOON, MAIL, EVENT)
    assert [e.kind for e in await claimed(store, mails=False)] == ["user.updated"]


async def test_outbox_claim_takes_from_each_queue(store: PostgresOutbox) -> None:
    """An e-mail about an account does not wait behind notifications."""
    followed = NewEntry(EventType.FOLLOWED_POST, 7, payload={"first": 1, "last": 1})
    await store.add(NOON, *[followed] * 30, MAIL, EVENT)
    kinds = [entry.kind for entry in await claimed(store)]
    assert kinds == ["mail.followed_post"] * 10 + ["mail.new_device", "user.updated"]


async def test_outbox_queue_of_entry_is_that_of_its_index(database: Database) -> None:
    """The index has the rule of Entry.queue in SQL."""
    kinds = list(EventType)
    values = sa.values(sa.column("kind", sa.Text), name="kinds").data(
        [(kind.value,) for kind in kinds]
    )
    query = sa.select(values.c.kind, outbox_queue)
    async with database.reading() as connection:
        queues = {row[0]: row[1] for row in await connection.execute(query)}
    assert queues == {
        kind.value: Entry(1, kind, None, None, {}, NOON, 0).queue for kind in kinds
    }


async def test_outbox_postponed_entry_counts_no_attempt(store: PostgresOutbox) -> None:
    await store.add(NOON, MAIL, MAIL)
    later, now = await claimed(store)
    await store.postpone([later.id], MINUTE)
    await store.postpone([now.id], NO_TIME)
    (again,) = await claimed(store)
    assert (again.id, again.attempts) == (now.id, 1)


async def test_outbox_delivered_entry_is_not_claimed(
    store: PostgresOutbox, database: Database
) -> None:
    """A delivered e-mail loses its recipient and payload; an event keeps both."""
    await store.add(NOON, MAIL, EVENT, MAIL)
    for entry in (await claimed(store, NO_TIME))[:2]:
        await store.delivered([entry.id], NOON)
    (dropped,) = await claimed(store, NO_TIME)
    await store.drop([dropped.id])
    async with database.reading() as connection:
        rows = (await connection.execute(sa.select(outbox))).all()
    remaining = {row.kind: (row.address, row.payload, row.state) for row in rows}
    assert remaining == {
        "mail.new_device": (None, {}, 1),
        "user.updated": (None, {"version": 2}, 1),
    }
    assert await store.delivered_since(EventType.NEW_DEVICE, 7, NOON)
    assert not await store.delivered_since(EventType.NEW_DEVICE, 7, NOON + MINUTE)


async def test_outbox_dead_letter_stays_until_requeued(store: PostgresOutbox) -> None:
    """A requeued dead letter counts no attempts; a retry waits for its delay."""
    await store.add(NOON, MAIL, MAIL, MAIL)
    later, now, dead = await claimed(store)
    await store.retry(later.id, MINUTE, "SMTPDataError")
    await store.retry(now.id, NO_TIME, "SMTPDataError")
    await store.dead_letter(dead.id, NOON, "SMTPDataError")
    assert [entry.id for entry in await claimed(store)] == [now.id]
    (dead_letter,) = await store.dead_letters()
    assert (dead_letter.id, dead_letter.kind, dead_letter.last_error) == (
        dead.id,
        "mail.new_device",
        "SMTPDataError",
    )
    assert await store.requeue([later.id, dead.id]) == {dead.id}
    (back,) = await claimed(store)
    assert (back.id, back.attempts) == (dead.id, 1)


async def test_outbox_backlog_counts_entries_that_are_not_delivered(
    store: PostgresOutbox, database: Database
) -> None:
    """The lag is the age of the oldest pending entry; an index serves each part."""
    await store.refresh_backlog()
    assert store.backlog == Backlog(0, 0, 0)
    now = datetime.now(UTC)
    await store.add(now - 2 * MINUTE, MAIL)
    await store.add(now - MINUTE, MAIL, MAIL)
    first, second, _ = await claimed(store)
    await store.dead_letter(first.id, now, "SMTPDataError")
    await store.refresh_backlog()
    assert store.backlog
    assert (store.backlog.pending, store.backlog.dead) == (2, 1)
    assert 60 <= store.backlog.age < 120
    await store.delivered([second.id], now)
    await store.refresh_backlog()
    assert store.backlog.pending == 1
    async with database.transaction() as connection:
        await connection.execute(sa.text("set local enable_seqscan = off"))
        plan = await connection.execute(sa.text(f"explain {BACKLOG}"))
        text = "\n".join(plan.scalars())
    assert "idx_outbox_dead" in text
    assert "idx_outbox_due" in text


async def test_entries_are_announced_once_they_have_committed(
    real_stores: StoresUnderTest, database: Database, store: PostgresOutbox
) -> None:
    """Other processes read them at once. Statements without entries wake nobody."""
    announced = 0

    def announce() -> None:
        nonlocal announced
        announced += 1

    database.announce = announce

    async def announcements(call: Awaitable[object]) -> int:
        before = announced
        await call
        return announced - before

    users, sessions = real_stores.users, real_stores.sessions
    assert await announcements(store.add(NOON, MAIL)) == 1
    ana = await users.add(new("ana"))
    assert announced == 2
    assert (
        await announcements(users.edit(ana.id, UserEdit({"username": "a"}, "", NOON)))
        == 1
    )
    first = await logged_in(sessions, ana.id, 2)
    assert announced == 4
    assert await announcements(logged_in(sessions, ana.id, 2)) == 0
    assert await announcements(sessions.end(first, NOON)) == 0
    with pytest.raises(EtagMismatch):
        await users.edit(ana.id, UserEdit({"username": "b"}, "other", NOON))
    assert announced == 4
    async with database.transaction() as connection:
        await record(connection, NOON, EVENT)
        assert announced == 4
    assert announced == 5
