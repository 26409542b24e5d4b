"""Rows are deleted at the end of their retention, and erased accounts leave none."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
import sqlalchemy as sa

from server.domain.accounts.users import NewUser, Role, User
from server.domain.audit import AuditEvent
from server.domain.credentials.mailed_tokens import MailedToken, Purpose
from server.domain.credentials.revocations import Revocations
from server.domain.credentials.sessions import Session
from server.domain.errors import UserNotFound
from server.domain.idempotency import IdempotencyRecord, RequestKey
from server.domain.outbox.entries import EventType, NewEntry
from server.store.accounts.erasure import Erasures, begin_erasure
from server.store.accounts.personal_data import PostgresPersonalData
from server.store.audit import PostgresAudit
from server.store.connections.connect import Database
from server.store.credentials.mailed_tokens import PostgresMailedTokens
from server.store.credentials.revocations import RevocationFeed
from server.store.outbox import PostgresOutbox
from server.store.redis.redis_client import redis_client
from server.store.retention import PostgresRetention
from server.store.tables import audit_events, metadata
from server.workers.retention import Retention
from tests.fakes import NOON, Clock
from tests.logs import captured_lines
from tests.store.conftest import StoresUnderTest
from tests.store.counting import counted

USER_RETENTION = timedelta(days=30)
AUDIT_RETENTION = timedelta(days=400)
A_DAY = timedelta(days=1)
BATCH_SIZE = 1_000


class RetentionHarness:
    """The stores of one database, and its retention."""

    def __init__(
        self, stores: StoresUnderTest, database: Database, redis_url: str
    ) -> None:
        self.stores, self.database, self.clock = stores, database, Clock()
        self.redis = redis_client(redis_url)
        revocations = Revocations(self.clock)
        feed = RevocationFeed(database, self.redis, revocations, self.clock)
        self.feed = feed
        self.erasures = Erasures(database, feed, BATCH_SIZE)
        self.retention = Retention(
            PostgresRetention(database, AUDIT_RETENTION, BATCH_SIZE),
            self.erasures,
            USER_RETENTION,
            self.clock,
        )
        self.personal_data = PostgresPersonalData(
            database, feed, lambda _: None, self.erasures
        )
        self.tokens = PostgresMailedTokens(database, feed, lambda _: None)
        self.outbox = PostgresOutbox(database)

    async def sweep(self, after: timedelta) -> None:
        """Sweep at this time after noon."""
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
        """Write a token, as the dispatcher does when it sends the e-mail."""
        await self.outbox.add(NOON, NewEntry(EventType.VERIFICATION, user.id))
        entry = max(row.id for row in await self.rows("outbox"))
        token = MailedToken(
            uuid4().bytes, Purpose.VERIFY, user.id, user.email, entry, NOON, NOON
        )
        minted = replace(token, expires_at=NOON + A_DAY)
        assert await self.tokens.mint(minted, None)


@pytest_asyncio.fixture
async def harness(
    real_stores: StoresUnderTest, database: Database, redis_url: str
) -> AsyncIterator[RetentionHarness]:
    harness = RetentionHarness(real_stores, database, redis_url)
    yield harness
    await harness.redis.aclose()


def idempotency(caller: str) -> IdempotencyRecord[User]:
    key = RequestKey(caller, "/x/Y", "id")
    return IdempotencyRecord(key, b"f", NOON, lambda user: user.email.encode())


async def test_retention_erases_deleted_users(harness: RetentionHarness) -> None:
    """R30: the names can be used again, the id cannot."""
    ana, bea = await harness.signed_up(), await harness.signed_up("bea")
    await harness.stores.users.delete(ana.id, NOON)
    await harness.sweep(USER_RETENTION)
    assert {row.id for row in await harness.rows("users")} == {ana.id, bea.id}
    await harness.sweep(USER_RETENTION + timedelta(seconds=1))
    assert [row.id for row in await harness.rows("users")] == [bea.id]
    again = await harness.signed_up()
    assert again.id > bea.id


async def test_erasure_leaves_nothing_personal_in_any_table(
    harness: RetentionHarness,
) -> None:
    """Audit events and the events of the account keep the id only."""
    ana = await harness.signed_up("zzana", idempotency("anonymous"))
    await harness.logged_in(ana)
    await harness.mailed(ana)
    await harness.outbox.add(
        NOON,
        NewEntry(EventType.PASSWORD_RESET, address="zzana"),
        NewEntry(EventType.PASSWORD_RESET, address="zzana@x.co"),
        NewEntry(EventType.NEW_DEVICE, ana.id, payload={"address": "192.0.2.1"}),
    )
    event = AuditEvent(0, NOON, "x", f"user:{ana.id}", ana.id, "192.0.2.1", "OK", "r")
    audit = PostgresAudit(harness.database)
    await audit.add(event)
    await audit.add(replace(event, user_id=0))
    await harness.stores.users.delete(ana.id, NOON)
    await harness.sweep(USER_RETENTION + A_DAY)
    values_by_table = {
        name: [str(value) for row in await harness.rows(name) for value in row]
        for name in metadata.tables
    }
    for name, values in values_by_table.items():
        assert not [v for v in values if "zzana" in v or "192.0.2" in v], name
    events = [row for row in await harness.rows("outbox") if row.user_id == ana.id]
    assert [row.kind for row in events][-1] == "user.erased"
    assert not [row for row in events if row.kind.startswith("mail.")]
    assert [row.user_id for row in await harness.rows("audit_events")] == [ana.id, 0]


async def test_retention_deletes_sessions_after_30_days(
    harness: RetentionHarness,
) -> None:
    """Until then they distinguish a known device from a new one."""
    ana = await harness.signed_up()
    expired, ended = (
        await harness.logged_in(ana),
        await harness.logged_in(ana, 99 * A_DAY),
    )
    lasting = await harness.logged_in(ana, 99 * A_DAY)
    await harness.stores.sessions.end(ended.id, NOON)
    await harness.sweep(29 * A_DAY)
    assert len(await harness.rows("sessions")) == 3
    await harness.sweep(32 * A_DAY)
    assert [row.id for row in await harness.rows("sessions")] == [lasting.id]
    assert expired.id != lasting.id


async def test_retention_deletes_revocations_when_their_tokens_have_expired(
    harness: RetentionHarness,
) -> None:
    ana = await harness.signed_up()
    await harness.stores.sessions.end((await harness.logged_in(ana)).id, NOON)
    await harness.sweep(timedelta(minutes=15))
    assert len(await harness.rows("revocations")) == 1
    await harness.sweep(timedelta(minutes=17))
    assert not await harness.rows("revocations")


async def test_retention_deletes_mailed_tokens_a_day_after_expiry(
    harness: RetentionHarness,
) -> None:
    await harness.mailed(await harness.signed_up())
    await harness.sweep(2 * A_DAY)
    assert len(await harness.rows("mailed_tokens")) == 1
    await harness.sweep(2 * A_DAY + timedelta(seconds=1))
    assert not await harness.rows("mailed_tokens")


async def test_retention_deletes_idempotent_responses_after_a_day(
    harness: RetentionHarness,
) -> None:
    await harness.signed_up(idempotency=idempotency("anonymous"))
    await harness.sweep(A_DAY)
    assert len(await harness.rows("request_answers")) == 1
    await harness.sweep(A_DAY + timedelta(seconds=1))
    assert not await harness.rows("request_answers")


async def test_retention_deletes_finished_outbox_entries(
    harness: RetentionHarness,
) -> None:
    """Delivered ones after 7 days, dead letters after 30."""
    await harness.signed_up()
    created, welcome = sorted(row.id for row in await harness.rows("outbox"))
    await harness.outbox.delivered([created], NOON)
    await harness.outbox.dead_letter(welcome, NOON, "SMTPDataError")
    await harness.sweep(7 * A_DAY)
    assert len(await harness.rows("outbox")) == 2
    await harness.sweep(7 * A_DAY + timedelta(seconds=1))
    assert [row.id for row in await harness.rows("outbox")] == [welcome]
    await harness.sweep(30 * A_DAY + timedelta(seconds=1))
    assert not await harness.rows("outbox")


async def test_retention_deletes_several_batches_in_one_sweep(
    harness: RetentionHarness,
) -> None:
    table = metadata.tables["revocations"]
    rows = [{"session_id": uuid4(), "ended_at": NOON} for _ in range(BATCH_SIZE + 1)]
    async with harness.database.transaction() as connection:
        await connection.execute(sa.insert(table), rows)
    await harness.sweep(A_DAY)
    assert not await harness.rows("revocations")


async def test_retention_deletes_audit_events_after_their_setting(
    harness: RetentionHarness,
) -> None:
    event = AuditEvent(0, NOON, "x", "anonymous", 0, "192.0.2.1", "OK", "r")
    await PostgresAudit(harness.database).add(event)
    await harness.sweep(AUDIT_RETENTION)
    assert len(await harness.rows("audit_events")) == 1
    await harness.sweep(AUDIT_RETENTION + timedelta(seconds=1))
    assert not await harness.rows("audit_events")


EVENTS = 20_500


async def with_many_events(harness: RetentionHarness, user: User) -> None:
    """Insert events about a user, by the user, and by the user about others."""
    rows = (
        "insert into audit_events"
        " (at, event, actor, user_id, address, outcome, request_id)"
        " select now(), 'x', case n % 2 when 0 then :actor else 'anonymous' end,"
        " case n % 4 when 0 then 0 else :id end, '192.0.2.1', 'OK', 'r'"
        " from generate_series(1, :count) n"
    )
    values = {"actor": f"user:{user.id}", "id": user.id, "count": EVENTS}
    async with harness.database.transaction() as connection:
        await connection.execute(sa.text(rows), values)


async def addresses_left(harness: RetentionHarness) -> int:
    query = sa.select(sa.func.count()).where(audit_events.c.address != "")
    async with harness.database.reading() as connection:
        return int((await connection.execute(query)).scalar_one())


async def test_erasure_continues_where_it_stopped(harness: RetentionHarness) -> None:
    """Each slice commits; no sweep reads the events of an earlier one again."""
    ana = await harness.signed_up()
    await with_many_events(harness, ana)
    await harness.stores.users.delete(ana.id, NOON)
    harness.retention.budget = timedelta(0)
    left = [EVENTS]
    for _ in range(2 * EVENTS // BATCH_SIZE):
        await harness.sweep(USER_RETENTION + A_DAY)
        assert not await harness.rows("users")
        if not await harness.rows("erasures"):
            break
        assert harness.retention.interval() < timedelta(minutes=1)
        left.append(await addresses_left(harness))
        assert left[-2] - left[-1] <= BATCH_SIZE
    assert len(left) > EVENTS / BATCH_SIZE
    assert await addresses_left(harness) == 0
    assert harness.retention.interval() == timedelta(minutes=1)
    kinds = [row.kind for row in await harness.rows("outbox")]
    assert kinds.count("user.erased") == 1


async def test_erasure_continues_in_another_process(
    harness: RetentionHarness,
    real_stores: StoresUnderTest,
    database: Database,
    redis_url: str,
) -> None:
    """Nothing but the database says where it stopped."""
    ana = await harness.signed_up()
    await with_many_events(harness, ana)
    await harness.stores.users.delete(ana.id, NOON)
    harness.retention.budget = timedelta(0)
    await harness.sweep(USER_RETENTION + A_DAY)
    assert 0 < await addresses_left(harness) < EVENTS
    other = RetentionHarness(real_stores, database, redis_url)
    await other.sweep(USER_RETENTION + A_DAY)
    await other.redis.aclose()
    assert await addresses_left(harness) == 0
    assert not await harness.rows("erasures")


async def refuse_deletion(harness: RetentionHarness, user_id: int) -> None:
    """Make Postgres refuse to delete a user."""
    async with harness.database.transaction() as connection:
        await connection.execute(
            sa.text(
                "create function refuse() returns trigger language plpgsql as"
                " $$ begin raise exception 'refused'; end $$"
            )
        )
        await connection.execute(
            sa.text(
                "create trigger refuse before delete on users for each row"
                f" when (old.id = {user_id}) execute function refuse()"
            )
        )


async def test_failing_erasure_does_not_delay_the_next(
    harness: RetentionHarness,
) -> None:
    """It is logged with the id, and tried again by the next sweep."""
    ana, bea = await harness.signed_up(), await harness.signed_up("bea")
    await refuse_deletion(harness, ana.id)
    for user in (ana, bea):
        await harness.stores.users.delete(user.id, NOON)
    with captured_lines(event="retention failed") as lines:
        await harness.sweep(USER_RETENTION + A_DAY)
    assert [row.id for row in await harness.rows("users")] == [ana.id]
    assert [line["user_id"] for line in lines] == [ana.id]
    async with harness.database.transaction() as connection:
        await connection.execute(sa.text("drop trigger refuse on users"))
    await harness.sweep(USER_RETENTION + A_DAY)
    assert not await harness.rows("users")


async def test_slow_erasure_does_not_delay_the_next(harness: RetentionHarness) -> None:
    ana, bea = await harness.signed_up(), await harness.signed_up("bea")
    await with_many_events(harness, ana)
    for user in (ana, bea):
        await harness.stores.users.delete(user.id, NOON)
    harness.retention.budget = timedelta(0)
    await harness.sweep(USER_RETENTION + A_DAY)
    assert [row.account_id for row in await harness.rows("erasures")] == [ana.id]
    assert not await harness.rows("users")


async def test_erase_call_removes_all_but_audit_addresses_at_once(
    harness: RetentionHarness,
) -> None:
    """The rest of the addresses is cleared in the background, which is woken."""
    ana = await harness.signed_up("zzana", idempotency("anonymous"))
    await harness.logged_in(ana)
    await harness.mailed(ana)
    await with_many_events(harness, ana)
    await harness.personal_data.erase(ana.id, NOON, timedelta(0))
    assert 0 < await addresses_left(harness) < EVENTS
    assert harness.erasures.wake.is_set()
    for name in metadata.tables:
        values = [str(value) for row in await harness.rows(name) for value in row]
        assert not [value for value in values if "zzana" in value], name
    for name in ("sessions", "mailed_tokens", "request_answers"):
        assert not await harness.rows(name)
    assert await harness.stores.users.by_id(ana.id) is None
    assert not await harness.personal_data.exists(ana.id)
    again = await harness.signed_up("zzana")
    assert again.id != ana.id
    await harness.sweep(A_DAY)
    assert await addresses_left(harness) == 0
    assert not await harness.rows("erasures")
    assert [row.id for row in await harness.rows("users")] == [again.id]


async def test_interrupted_erase_call_can_be_repeated(
    harness: RetentionHarness,
) -> None:
    """It continues; one event is written, and afterwards the account is unknown."""
    ana = await harness.signed_up()
    await refuse_deletion(harness, ana.id)
    with pytest.raises(sa.exc.DBAPIError):
        await harness.personal_data.erase(ana.id, NOON)
    assert await harness.stores.users.by_id(ana.id) is None
    async with harness.database.transaction() as connection:
        await connection.execute(sa.text("drop trigger refuse on users"))
    await harness.personal_data.erase(ana.id, NOON)
    kinds = [row.kind for row in await harness.rows("outbox")]
    assert kinds.count("user.erased") == 1
    assert not await harness.rows("users")
    assert not await harness.rows("erasures")
    with pytest.raises(UserNotFound):
        await harness.personal_data.erase(ana.id, NOON)


async def test_account_with_erasure_begun_cannot_be_undeleted(
    harness: RetentionHarness,
) -> None:
    ana = await harness.signed_up()
    async with harness.database.transaction() as connection:
        await begin_erasure(connection, ana.id, NOON)
    with pytest.raises(UserNotFound):
        await harness.stores.users.undelete(ana.id, NOON - USER_RETENTION, NOON)


async def test_account_undeleted_meanwhile_is_not_erased(
    harness: RetentionHarness,
) -> None:
    """Between the reading of what is due and its erasure an admin may undelete."""
    ana = await harness.signed_up()
    erased = await harness.erasures.erase(
        ana.id, NOON, NOON - USER_RETENTION, timedelta(minutes=1)
    )
    assert erased
    assert (await harness.stores.users.by_id(ana.id)) == ana


async def test_erasure_deletes_rows_of_account_in_batches(
    harness: RetentionHarness, database: Database
) -> None:
    """No statement touches more rows than a batch."""
    ana = await harness.signed_up()
    sessions = (
        "insert into sessions (id, user_id, token_hash, parent_hash, nonce, created_at,"
        " last_used_at, expires_at, address, device, ended_at)"
        " select gen_random_uuid(), :id, '', '', '', :now, :now, :now, '', '', :now"
        " from generate_series(1, :count)"
    )
    values = {"id": ana.id, "now": NOON, "count": 2 * BATCH_SIZE + 1}
    async with database.transaction() as connection:
        await connection.execute(sa.text(sessions), values)
    with counted(database) as statements:
        await harness.personal_data.erase(ana.id, NOON)
    deletes = [s for s in statements if s.startswith("WITH batch") and "sessions" in s]
    assert len(deletes) == 3
    assert not await harness.rows("sessions")
