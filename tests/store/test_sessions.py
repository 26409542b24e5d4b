"""The contract of session stores, in memory and in Postgres."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import pytest
import sqlalchemy as sa

from server.domain.accounts.users import NewUser, Role
from server.domain.credentials.revocations import Revocations
from server.domain.credentials.sessions import Rotation, Session
from server.domain.credentials.stores import Account, Owner
from server.domain.errors import RefreshTokenInvalid, TokenInvalid
from server.store.accounts.users import PostgresUsers
from server.store.connections.connect import Database
from server.store.credentials.accounts import PostgresAccounts
from server.store.credentials.revocations import RevocationFeed, revoke
from server.store.credentials.sessions import PostgresSessions
from server.store.redis.redis_client import redis_client
from server.store.tables import revocations
from server.workers.poller import Poller
from server.workers.supervisor import Subscription, supervise
from tests.fakes import NOON, Clock
from tests.store.conftest import StoresUnderTest


async def opened(stores: StoresUnderTest) -> Session:
    user = await stores.users.add(NewUser("a@x.co", "ana", "", Role.STUDENT, NOON))
    session = Session(
        id=uuid4(),
        user_id=user.id,
        token_hash=b"1",
        parent_hash=b"",
        nonce=b"",
        created_at=NOON,
        last_used_at=NOON,
        expires_at=NOON + timedelta(days=1),
        address="192.0.2.1",
        device="test",
    )
    assert await stores.sessions.add(session, user.version)
    return session


async def present(stores: StoresUnderTest, session: Session) -> Session:
    """Return the stored session."""
    rotated = await stores.sessions.rotate(session.id, lambda found, _: Rotation(found))
    assert rotated
    return rotated[0].session


async def test_rotate_writes_the_decision(stores: StoresUnderTest) -> None:
    """The session that `decide` returns is read by the next rotation."""
    session = await opened(stores)
    wanted = replace(session, token_hash=b"2", parent_hash=b"1", nonce=b"n")
    rotated = await stores.sessions.rotate(
        session.id, lambda found, _: Rotation(replace(wanted, id=found.id), "token")
    )
    assert rotated == (Rotation(wanted, "token"), Owner(Role.STUDENT, True))
    seen: list[Session] = []

    def refresh(found: Session, _owner: Owner) -> Rotation:
        seen.append(found)
        return Rotation(found)

    await stores.sessions.rotate(session.id, refresh)
    assert seen == [wanted]
    assert await stores.sessions.rotate(uuid4(), refresh) is None


async def test_rotate_refused_changes_nothing(stores: StoresUnderTest) -> None:
    """R20: a failed refresh costs nothing."""
    session = await opened(stores)

    def refuse(_found: Session, _owner: Owner) -> Rotation:
        raise RefreshTokenInvalid("no")

    with pytest.raises(RefreshTokenInvalid):
        await stores.sessions.rotate(session.id, refuse)
    assert (await present(stores, session)) == session


async def test_end_twice_is_no_error(stores: StoresUnderTest) -> None:
    """The first end stays."""
    session = await opened(stores)
    await stores.sessions.end(session.id, NOON)
    await stores.sessions.end(session.id, NOON + timedelta(seconds=9))
    assert (await present(stores, session)).ended_at == NOON


async def test_too_many_sessions_end_the_oldest(stores: StoresUnderTest) -> None:
    """ASVS 7.1.2; a session that has ended does not count."""
    oldest = await opened(stores)
    ended = await added_after(stores, oldest, 1)
    await stores.sessions.end(ended.id, NOON)
    rest = [await added_after(stores, oldest, n) for n in range(2, 51)]
    assert await stores.sessions.open_of(oldest.user_id, NOON) == [*rest[::-1], oldest]
    newest = await added_after(stores, oldest, 51)
    assert await stores.sessions.open_of(oldest.user_id, NOON) == [
        newest,
        *rest[::-1],
    ]
    assert (await present(stores, oldest)).ended_at == newest.created_at


async def added_after(
    stores: StoresUnderTest, session: Session, seconds: int
) -> Session:
    """Add a session of the same user, opened so much later."""
    created_at = session.created_at + timedelta(seconds=seconds)
    later = replace(session, id=uuid4(), created_at=created_at)
    assert await stores.sessions.add(later, 1)
    return later


async def test_end_all_keeps_one_session(stores: StoresUnderTest) -> None:
    """R13, R22: all of this user's, none of another's."""
    kept = await opened(stores)
    other = replace(kept, id=uuid4(), created_at=NOON + timedelta(seconds=1))
    assert await stores.sessions.add(other, 1)
    assert await stores.sessions.open_of(kept.user_id, NOON) == [other, kept]
    await stores.sessions.end_all(kept.user_id + 1, NOON)
    await stores.sessions.end_all(kept.user_id, NOON, keep=kept.id)
    assert await stores.sessions.open_of(kept.user_id, NOON) == [kept]
    assert not await stores.sessions.end(kept.id, NOON, user_id=kept.user_id + 1)
    owner = await stores.sessions.end(kept.id, NOON, user_id=kept.user_id)
    assert owner == kept.user_id
    assert await stores.sessions.open_of(kept.user_id, NOON) == []


async def test_change_password_ends_other_sessions(stores: StoresUnderTest) -> None:
    """R13: in one transaction with the new hash."""
    kept = await opened(stores)
    assert await stores.sessions.add(replace(kept, id=uuid4()), 1)
    account = await account_of(stores, kept)
    assert await stores.sessions.change_password(account, "new", kept.id, NOON)
    account = await account_of(stores, kept)
    assert account.password_hash == "new"
    assert await stores.sessions.open_of(kept.user_id, NOON) == [kept]


async def test_changes_after_account_change_are_refused(
    stores: StoresUnderTest,
) -> None:
    """R13, R22: a password verified before the account changed is too late."""
    kept = await opened(stores)
    before = await account_of(stores, kept)
    sessions = stores.sessions
    assert await sessions.change_password(before, "new", kept.id, NOON)
    assert not await sessions.add(replace(kept, id=uuid4()), before.version)
    assert not await sessions.change_password(before, "other", kept.id, NOON)
    assert not await sessions.request_email_change(before, "eve@x.co", kept.id, NOON)
    assert await sessions.open_of(kept.user_id, NOON) == [kept]
    assert (await account_of(stores, kept)).password_hash == "new"


async def test_add_waits_for_concurrent_account_change(
    real_stores: StoresUnderTest, database: Database
) -> None:
    """R22: whichever commits first, no session outlives a change that ends it."""
    kept = await opened(real_stores)
    late = replace(kept, id=uuid4())
    change = sa.text("update users set version = version + 1 where id = :id")
    async with database.transaction() as connection:
        await connection.execute(change, {"id": kept.user_id})
        adding = asyncio.create_task(real_stores.sessions.add(late, 1))
        await blocked(database)
    assert not await adding


async def blocked(database: Database) -> None:
    """Wait until a statement waits for a lock."""
    query = sa.text("select count(*) from pg_locks where not granted")
    async with asyncio.timeout(5), database.reading() as connection:
        waiting = 0
        while not waiting:
            await asyncio.sleep(0.01)
            waiting = (await connection.execute(query)).scalar_one()


async def account_of(stores: StoresUnderTest, session: Session) -> Account:
    account = await stores.accounts.account_by_id(session.user_id)
    assert account
    return account


async def test_concurrent_rotations_are_serialized(
    real_stores: StoresUnderTest,
) -> None:
    """R20: under a row lock each sees the result of the one before."""
    session = await opened(real_stores)

    def count(found: Session, _owner: Owner) -> Rotation:
        return Rotation(replace(found, nonce=found.nonce + b"."))

    await asyncio.gather(
        *(real_stores.sessions.rotate(session.id, count) for _ in range(20))
    )
    assert (await present(real_stores, session)).nonce == b"." * 20


async def test_end_is_seen_by_other_process_without_redis(database: Database) -> None:
    """R22: the next poll of another process finds it in Postgres."""
    clock, nowhere = Clock(), redis_client("unix:///nowhere")
    ours, theirs = Revocations(clock), Revocations(clock)
    feed = RevocationFeed(database, nowhere, ours, clock)
    other = RevocationFeed(database, nowhere, theirs, clock)
    await other.refresh()
    stores = StoresUnderTest(
        PostgresUsers(database, feed),
        PostgresAccounts(database),
        PostgresSessions(database, feed),
        None,  # type: ignore[arg-type]  # no stored responses are needed here
    )
    session = await opened(stores)
    await stores.sessions.end(session.id, NOON)
    assert not theirs.covers(session.name)
    await other.refresh()
    assert theirs.covers(session.name)
    await stores.sessions.end(session.id, NOON)
    async with database.reading() as connection:
        count = sa.select(sa.func.count()).select_from(revocations)
        assert (await connection.execute(count)).scalar() == 1  # ended once
    await nowhere.aclose()


@pytest.mark.parametrize("write_epochs", [False, True])
async def test_late_commit_is_not_skipped(
    database_url: str, redis_url: str, write_epochs: bool
) -> None:
    """A poll between a slow transaction's write and its commit loses nothing."""
    database = Database(database_url, write_epochs=write_epochs)
    clock, redis = Clock(), redis_client(redis_url)
    known = Revocations(clock)
    feed = RevocationFeed(database, redis, known, clock)
    slow, quick = uuid4(), uuid4()
    async with database.transaction() as open_one:
        await revoke(open_one, [slow], NOON)
        async with database.transaction() as other:
            await revoke(other, [quick], NOON)
        for _ in range(3):
            if advance := database.settled_changes.advance:
                await database.run(advance)
            await feed.refresh()
        assert known.covers(quick.hex)
        assert not known.covers(slow.hex)
    await feed.refresh()
    assert known.covers(slow.hex)
    await redis.aclose()
    await database.close()


async def test_message_triggers_refresh(database: Database, redis_url: str) -> None:
    """A running process learns of an end elsewhere by a message."""
    clock, redis = Clock(), redis_client(redis_url)
    known = Revocations(clock)
    ours = RevocationFeed(database, redis, Revocations(clock), clock)
    feed = RevocationFeed(database, redis, known, clock)
    session_id = uuid4()
    wakeups = feed.wakeups
    poller = Poller("revocations", feed.refresh, timedelta(minutes=1), wakeups.wake)
    messages = Subscription("messages", wakeups.listen)
    async with supervise(poller, messages), asyncio.timeout(10):
        async with database.transaction() as connection:
            await revoke(connection, [session_id], NOON)
        await ours.ended([session_id], NOON)
        while not known.covers(session_id.hex):  # noqa: ASYNC110 - seen from outside
            await asyncio.sleep(0.01)
    await redis.aclose()


async def test_ended_session_cannot_change_account(stores: StoresUnderTest) -> None:
    """It may end after its password was verified, for example by a reset."""
    session = await opened(stores)
    await stores.sessions.end(session.id, NOON)
    account = await stores.accounts.account_by_id(session.user_id)
    assert account
    with pytest.raises(TokenInvalid):
        await stores.sessions.change_password(account, "x", session.id, NOON)
    with pytest.raises(TokenInvalid):
        await stores.sessions.request_email_change(account, "b@x.co", session.id, NOON)
    account = await stores.accounts.account_by_id(session.user_id)
    assert account
    assert account.password_hash == ""
