"""`DATABASE_POOLER=transaction`: the whole service behind pgbouncer."""

import asyncio
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from blatam.user.v1 import user_pb2
from server.domain.errors import StoreUnavailable
from server.store import migrate
from server.store.connections.connect import Database
from server.store.connections.faults import describe_fault, is_misconfigured
from tests.pgbouncer import BINARY, pgbouncer
from tests.running import running

pytestmark = pytest.mark.skipif(
    BINARY is None, reason="pgbouncer is not installed (apt-get install pgbouncer)"
)
USERS = 20
ROUNDS = 5


@pytest.fixture
def pooled_url(database_url: str) -> Iterator[str]:
    with pgbouncer(database_url) as url:
        yield url


async def test_calls_succeed_behind_a_transaction_pooler(
    pooled_url: str, redis_url: str
) -> None:
    """More callers than server connections: no statement meets a foreign session."""
    async with running(pooled_url, redis_url, database_pooler="transaction") as service:
        people = await asyncio.gather(*(service.signed_in() for _ in range(USERS)))

        async def read(number: int) -> user_pb2.User:
            person = people[number % USERS]
            request = user_pb2.GetUserRequest(id=person.user.id)
            reply = await service.users.GetUser(request, metadata=person.metadata)
            return reply.user

        users = await asyncio.gather(*(read(n) for n in range(USERS * ROUNDS)))
        assert {user.id for user in users} == {person.user.id for person in people}
        response = await service.http.get("/readyz")
        assert response.status_code == 200


async def test_change_is_visible_without_listen(
    pooled_url: str, redis_url: str
) -> None:
    """Outbox and caches poll: the e-mail arrives; a read sees the change at once."""
    async with running(pooled_url, redis_url, database_pooler="transaction") as service:
        person = await service.signed_in()
        renamed = user_pb2.User(id=person.user.id, username="renamed")
        request = user_pb2.UpdateUserRequest(user=renamed)
        await service.users.UpdateUser(request, metadata=person.metadata)
        read = user_pb2.GetUserRequest(id=person.user.id)
        reply = await service.users.GetUser(read, metadata=person.metadata)
        assert reply.user.username == "renamed"
        await service.mailbox.mail(person.user.email, "")


async def test_migrations_run_behind_a_transaction_pooler(pooled_url: str) -> None:
    database = Database(pooled_url, transaction_pooler=True)
    await migrate.upgrade(database)
    assert not await migrate.is_behind(database)


async def test_lock_waits_are_bounded_behind_a_transaction_pooler(
    database_url: str, pooled_url: str
) -> None:
    direct, pooled = (
        Database(database_url),
        Database(pooled_url, transaction_pooler=True),
    )
    lock = sa.text("lock table users in access exclusive mode")
    try:
        async with direct.transaction() as holder:
            await holder.execute(lock)
            async with asyncio.timeout(2):
                with pytest.raises(StoreUnavailable):
                    async with pooled.transaction() as connection:
                        await connection.execute(lock)
        async with pooled.reading() as connection:
            timeout = await connection.execute(sa.text("show lock_timeout"))
            assert timeout.scalar_one() == "0"  # nothing leaks to the next client
    finally:
        await direct.close()
        await pooled.close()


async def test_without_the_setting_an_error_names_the_pooler(pooled_url: str) -> None:
    database = Database(pooled_url)
    with pytest.raises(Exception) as error:  # noqa: PT011 - its explanation counts
        await database.ping()
    cause = error.value.__cause__ or error.value
    assert is_misconfigured(cause)
    assert "set DATABASE_POOLER=transaction" in describe_fault(cause)
    await database.close()
