"""What is kept no longer than it serves, and what erasing a user leaves."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from server.domain.accounts.users import NewUser, Role, User
from server.domain.audit import AuditEvent
from server.domain.credentials.mailed_tokens import MailedToken, Purpose
from server.domain.credentials.revocations import Revocations
from server.domain.credentials.sessions import Session
from server.domain.idempotency import IdempotencyRecord, RequestKey
from server.domain.outbox.entries import EventType, NewEntry
from server.store import retention
from server.store.audit import PostgresAudit
from server.store.connect import Database, redis_client
from server.store.credentials.mailed_tokens import PostgresMailedTokens
from server.store.credentials.revocations import RevocationFeed
from server.store.outbox import PostgresOutbox
from server.store.retention import Retention
from server.store.tables import metadata
from tests.fakes import NOON, Clock
from tests.store.conftest import Stores

KEPT = timedelta(days=30)
A_DAY = timedelta(days=1)


class World:
    """The stores of one database, and what is swept there."""

    def __init__(self, stores: Stores, database: Database, redis_url: str) -> None:
        self.stores, self.database, self.clock = stores, database, Clock()
        redis = redis_client(redis_url)
        feed = RevocationFeed(database, redis, Revocations(self.clock), self.clock)
        self.retention = Retention(database, feed, KEPT, self.clock)
        self.tokens = PostgresMailedTokens(database, feed, lambda _: None)
        self.outbox = PostgresOutbox(database)

    async def sweep(self, after: timedelta) -> None:
        """Sweep so long after noon."""
        self.clock.now = NOON + after
        await self.retention.sweep()

    async def rows(self, table: str) -> Sequence[sa.Row[Any]]:
        query = sa.select(metadata.tables[table])
        async with self.database.reading() as connection:
            return (await connection.execute(query)).all()

    async def signed_up(self, name: str = "ana", idempotency: Any = None) -> User:
        new = NewUser(f"{name}@x.co", name, "hash", Role.STUDENT, NOON)
        return await self.stores.users.add(new, idempotency)

    async def logged_in(self, user: User, lasting: timedelta = A_DAY) -> Session:
        session = Session(
            id=uuid4(),
            user_id=user.id,
            token_hash=b"1",
            parent_hash=b"",
            nonce=b"",
            created_at=NOON,
            last_used_at=NOON,
            expires_at=NOON + lasting,
            address="192.0.2.1",
            device="Phone",
        )
        assert await self.stores.sessions.add(session, user.version)
        return session

    async def mailed(self, user: User) -> None:
        """Write a token, as if its mail were being sent."""
        await self.outbox.add(NOON, NewEntry(EventType.VERIFICATION, user.id))
        entry = max(row.id for row in await self.rows("outbox"))
        token = MailedToken(
            uuid4().bytes, Purpose.VERIFY, user.id, user.email, entry, NOON, NOON
        )
        minted = replace(token, expires_at=NOON + A_DAY)
        assert await self.tokens.mint(minted, None)


@pytest.fixture
def world(real_stores: Stores, database: Database, redis_url: str) -> World:
    return World(real_stores, database, redis_url)


def idempotency(caller: str) -> IdempotencyRecord[User]:
    key = RequestKey(caller, "/x/Y", "id")
    return IdempotencyRecord(key, b"f", NOON, lambda user: user.email.encode())


async def test_deleted_users_are_erased_after_their_time(world: World) -> None:
    """R30: the names become free, the id is never given again."""
    ana, bea = await world.signed_up(), await world.signed_up("bea")
    await world.stores.users.delete(ana.id, NOON)
    await world.sweep(KEPT)
    assert {row.id for row in await world.rows("users")} == {ana.id, bea.id}
    await world.sweep(KEPT + timedelta(seconds=1))
    assert [row.id for row in await world.rows("users")] == [bea.id]
    again = await world.signed_up()
    assert again.id > bea.id


async def test_nothing_personal_is_left_of_a_user(world: World) -> None:
    """Whatever table it stood in; the audit log and the events keep the id."""
    ana = await world.signed_up("zzana", idempotency("anonymous"))
    await world.logged_in(ana)
    await world.mailed(ana)
    await world.outbox.add(
        NOON,
        NewEntry(EventType.PASSWORD_RESET, address="zzana"),
        NewEntry(EventType.PASSWORD_RESET, address="zzana@x.co"),
        NewEntry(EventType.NEW_DEVICE, ana.id, payload={"address": "192.0.2.1"}),
    )
    event = AuditEvent(0, NOON, "x", f"user:{ana.id}", ana.id, "192.0.2.1", "OK", "r")
    audit = PostgresAudit(world.database)
    await audit.add(event)
    await audit.add(replace(event, user_id=0))
    await world.stores.users.delete(ana.id, NOON)
    await world.sweep(KEPT + A_DAY)
    left = {
        name: [str(value) for row in await world.rows(name) for value in row]
        for name in metadata.tables
    }
    for name, values in left.items():
        assert not [v for v in values if "zzana" in v or "192.0.2" in v], name
    events = [row for row in await world.rows("outbox") if row.user_id == ana.id]
    assert [row.kind for row in events][-1] == "user.erased"
    assert not [row for row in events if row.kind.startswith("mail.")]
    assert [row.user_id for row in await world.rows("audit_events")] == [ana.id, 0]


async def test_sessions_are_kept_a_while_after_their_end(world: World) -> None:
    """A device that was seen before must be known for some time."""
    ana = await world.signed_up()
    expired, ended = await world.logged_in(ana), await world.logged_in(ana, 99 * A_DAY)
    lasting = await world.logged_in(ana, 99 * A_DAY)
    await world.stores.sessions.end(ended.id, NOON)
    await world.sweep(29 * A_DAY)
    assert len(await world.rows("sessions")) == 3
    await world.sweep(32 * A_DAY)
    assert [row.id for row in await world.rows("sessions")] == [lasting.id]
    assert expired.id != lasting.id


async def test_revocations_go_when_no_token_can_live(world: World) -> None:
    ana = await world.signed_up()
    await world.stores.sessions.end((await world.logged_in(ana)).id, NOON)
    await world.sweep(timedelta(minutes=15))
    assert len(await world.rows("revocations")) == 1
    await world.sweep(timedelta(minutes=17))
    assert not await world.rows("revocations")


async def test_mailed_tokens_go_a_day_after_their_end(world: World) -> None:
    await world.mailed(await world.signed_up())
    await world.sweep(2 * A_DAY)
    assert len(await world.rows("mailed_tokens")) == 1
    await world.sweep(2 * A_DAY + timedelta(seconds=1))
    assert not await world.rows("mailed_tokens")


async def test_first_answers_are_kept_for_a_day(world: World) -> None:
    await world.signed_up(idempotency=idempotency("anonymous"))
    await world.sweep(A_DAY)
    assert len(await world.rows("request_answers")) == 1
    await world.sweep(A_DAY + timedelta(seconds=1))
    assert not await world.rows("request_answers")


async def test_delivered_entries_are_kept_for_the_streams(world: World) -> None:
    """Seven days; the dead thirty, for an operator to put back."""
    await world.signed_up()
    created, welcome = sorted(row.id for row in await world.rows("outbox"))
    await world.outbox.delivered(created, NOON)
    await world.outbox.dead_letter(welcome, NOON, "SMTPDataError")
    await world.sweep(7 * A_DAY)
    assert len(await world.rows("outbox")) == 2
    await world.sweep(7 * A_DAY + timedelta(seconds=1))
    assert [row.id for row in await world.rows("outbox")] == [welcome]
    await world.sweep(30 * A_DAY + timedelta(seconds=1))
    assert not await world.rows("outbox")


async def test_more_than_a_batch(world: World) -> None:
    """All of it goes in one sweep, a batch in each transaction."""
    table = metadata.tables["revocations"]
    rows = [
        {"session_id": uuid4(), "ended_at": NOON} for _ in range(retention.BATCH + 1)
    ]
    async with world.database.transaction() as connection:
        await connection.execute(sa.insert(table), rows)
    await world.sweep(A_DAY)
    assert not await world.rows("revocations")
