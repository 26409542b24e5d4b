"""The outbox: written with the change, claimed by one, delivered or dead."""

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from server.domain.accounts.users import NewUser, Role, UserEdit
from server.domain.credentials.sessions import Session
from server.domain.errors import EmailTaken, LastAdmin
from server.domain.outbox.entries import Entry, EventType, NewEntry
from server.store.connect import Database
from server.store.credentials.sessions import PostgresSessions
from server.store.outbox import PostgresOutbox
from server.store.tables import outbox
from server.workers.supervisor import supervise
from tests.fakes import NOON, FakeSessions
from tests.store.conftest import Stores

MINUTE, NO_TIME = timedelta(minutes=1), timedelta(0)
LONG_AGO = NOON - timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Written:
    """A row as it stands there."""

    kind: str
    user_id: int | None
    version: int


async def written(database: Database) -> list[Written]:
    """Give the events, in the order in which streams read them."""
    query = sa.select(outbox).where(outbox.c.kind.like("user.%")).order_by(outbox.c.id)
    async with database.reading() as connection:
        rows = (await connection.execute(query)).all()
    return [Written(row.kind, row.user_id, row.payload["version"]) for row in rows]


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


async def test_every_change_of_an_account_is_told(
    real_stores: Stores, database: Database
) -> None:
    """By an event in its own transaction, which says the version it led to."""
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
    assert await written(database) == [
        Written(f"user.{kind}", ana.id, version)
        for version, kind in enumerate(kinds, start=1)
    ]


async def test_what_is_refused_or_changes_nothing_is_not_told(
    real_stores: Stores, database: Database
) -> None:
    """An event without its change would be an invention."""
    ana = await real_stores.users.add(new("ana", Role.ADMIN))
    with pytest.raises(EmailTaken):
        await real_stores.users.add(
            NewUser("ana@example.com", "bea", "", Role.STUDENT, NOON)
        )
    await real_stores.users.edit(ana.id, UserEdit({"username": "ana"}, "", NOON))
    with pytest.raises(LastAdmin):
        await real_stores.users.delete(ana.id, NOON)
    assert await written(database) == [Written("user.created", ana.id, 1)]


@pytest.fixture
def store(database: Database) -> PostgresOutbox:
    return PostgresOutbox(database)


async def claimed(
    store: PostgresOutbox, lease: timedelta = MINUTE, *, mails: bool = True
) -> list[Entry]:
    return list(await store.claim(10, lease, mails=mails))


MAIL = NewEntry(EventType.NEW_DEVICE, 7, "a@x.co", {"device": "Phone"})
EVENT = NewEntry(EventType.USER_UPDATED, 7, payload={"version": 2})


async def test_an_entry_is_one_claimants(store: PostgresOutbox) -> None:
    """However many look at once; again when its lease is over: they may be dead."""
    await store.add(NOON, *[MAIL] * 25)
    found = await asyncio.gather(*(claimed(store, NO_TIME) for _ in range(2)))
    idempotency = [entry.id for batch in found for entry in batch]
    assert len(set(idempotency)) == 20
    assert found[0][0].payload == MAIL.payload
    again = await claimed(store)
    assert {entry.attempts for entry in again} == {1, 2}
    assert not {e.id for e in again} & {e.id for e in await claimed(store)}


async def test_a_lease_is_renewed(store: PostgresOutbox) -> None:
    await store.add(NOON, MAIL)
    (entry,) = await claimed(store, NO_TIME)
    await store.renew([entry.id], MINUTE)
    assert not await claimed(store)


async def test_what_is_put_back_was_never_tried(store: PostgresOutbox) -> None:
    await store.add(NOON, MAIL)
    (entry,) = await claimed(store)
    await store.release([entry.id])
    (again,) = await claimed(store)
    assert (again.id, again.attempts) == (entry.id, 1)


async def test_mails_are_left_while_the_post_is_away(store: PostgresOutbox) -> None:
    await store.add(NOON, MAIL, EVENT)
    assert [e.kind for e in await claimed(store, mails=False)] == ["user.updated"]


async def test_what_is_delivered_is_not_claimed(
    store: PostgresOutbox, database: Database
) -> None:
    """Of a mail only that there was one is kept; an event keeps what it tells."""
    await store.add(NOON, MAIL, EVENT, MAIL)
    for entry in (await claimed(store, NO_TIME))[:2]:
        await store.delivered(entry.id, NOON)
    (dropped,) = await claimed(store, NO_TIME)
    await store.drop(dropped.id)
    async with database.reading() as connection:
        rows = (await connection.execute(sa.select(outbox))).all()
    found = {row.kind: (row.address, row.payload, row.state) for row in rows}
    assert found == {
        "mail.new_device": (None, {}, 1),
        "user.updated": (None, {"version": 2}, 1),
    }
    assert await store.delivered_since(EventType.NEW_DEVICE, 7, NOON)
    assert not await store.delivered_since(EventType.NEW_DEVICE, 7, NOON + MINUTE)


async def test_a_retry_waits_and_the_dead_stay(store: PostgresOutbox) -> None:
    """Until an operator puts them back, as if they had never been tried."""
    await store.add(NOON, MAIL, MAIL, MAIL)
    later, now, dead = await claimed(store)
    await store.retry(later.id, MINUTE, "SMTPDataError")
    await store.retry(now.id, NO_TIME, "SMTPDataError")
    await store.dead_letter(dead.id, NOON, "SMTPDataError")
    assert [entry.id for entry in await claimed(store)] == [now.id]
    (shown,) = await store.dead()
    assert (shown.id, shown.kind, shown.last_error) == (
        dead.id,
        "mail.new_device",
        "SMTPDataError",
    )
    assert await store.revive([later.id, dead.id]) == 1
    (back,) = await claimed(store)
    assert (back.id, back.attempts) == (dead.id, 1)


async def test_whoever_waits_is_told(store: PostgresOutbox) -> None:
    """At once when an entry commits, by whatever process."""
    async with asyncio.timeout(10), supervise(store.listen):
        while True:
            await store.add(NOON, MAIL)
            started = asyncio.get_running_loop().time()
            await store.wait(1)
            if asyncio.get_running_loop().time() - started < 0.5:
                break
