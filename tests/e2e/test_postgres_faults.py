"""Postgres that is killed, or breaks off: no acknowledged write is lost or repeated."""

import asyncio
import signal
import uuid
from pathlib import Path

import grpc
import sqlalchemy as sa

from blatam.post.v1 import post_pb2
from server.store.connections.connect import Database
from server.store.migrate import upgrade
from tests.conftest import ready
from tests.fault_proxy import (
    COMMITTED,
    fault_proxy,
    proxied_database_url,
    to_postgres,
)
from tests.load.faults.ledger import Ledger
from tests.load.faults.stores import open_stores
from tests.load.faults.traffic import (
    Client,
    follow,
    rename,
    renew_session,
    sign_up,
    write_post,
)
from tests.running import running

SLEEP_SECONDS = 5


async def test_acknowledged_writes_survive_kill_of_postgres(state_dir: Path) -> None:
    """L4, L13: nothing is lost, ended sessions stay ended, and calls work again."""
    async with open_stores(state_dir) as stores:
        database = Database(stores.database_url)
        await upgrade(database)
        async with running(stores.database_url, stores.redis_url) as service:
            client, ledger = Client(service.channel), Ledger()
            members = [await sign_up(client, ledger, f"member{n}") for n in range(2)]
            for write in (write_post, rename, renew_session, follow(members[1:])):
                await write(client, ledger, members[0])
            assert not client.failures
            stores.signal_postgres(signal.SIGKILL)
            await write_post(client, ledger, members[0])
            assert len(client.failures) == 1
            await stores.start_postgres()
            await ready(service)
            async with asyncio.timeout(10):  # calls are refused until a probe succeeds
                while len(ledger.posts) < 2:
                    await write_post(client, ledger, members[0])
            codes = {failure.code for failure in client.failures}
            assert codes == {grpc.StatusCode.UNAVAILABLE}
            assert len(ledger.ended_sessions) == len(ledger.follows) == 1
            assert await ledger.lost(database, service.channel) == []
        await database.close()


async def test_repeat_after_lost_commit_writes_nothing(
    database_url: str, redis_url: str
) -> None:
    """L8, L14: the connection ended after the commit, before Postgres confirmed it."""
    async with (
        fault_proxy(to_postgres(database_url)) as proxy,
        running(proxied_database_url(database_url, proxy), redis_url) as service,
    ):
        user = await service.signed_in()
        body = {"title": "Cut", "body": "Once.", "requestId": str(uuid.uuid4())}
        proxy.reset_on = COMMITTED
        response = await service.http.post(
            "/api/v1/posts", json=body, headers=user.headers
        )
        assert (response.status_code, proxy.resets > 0) == (503, True)
        proxy.reset_on = b""
        request = post_pb2.CreatePostRequest(
            title="Cut", body="Once.", request_id=body["requestId"]
        )
        repeated = (
            await service.posts.CreatePost(
                request, metadata=user.metadata, wait_for_ready=True
            )
        ).post
        listed = await service.posts.ListPosts(
            post_pb2.ListPostsRequest(author_id=user.user.id), metadata=user.metadata
        )
        assert [post.id for post in listed.items] == [repeated.id]


async def test_statement_ends_with_its_caller(
    database_url: str, redis_url: str
) -> None:
    """L10: Postgres stops working for a caller that has given up."""
    database = Database(database_url)
    async with running(database_url, redis_url) as service:
        user = await service.signed_in()
        async with database.transaction() as connection:
            for statement in (
                "create function wait() returns trigger language plpgsql as "
                f"$$ begin perform pg_sleep({SLEEP_SECONDS}); return new; end $$",
                "create trigger wait before insert on posts for each row "
                "execute function wait()",
            ):
                await connection.execute(sa.text(statement))
        response = await service.http.post(
            "/api/v1/posts",
            json={"title": "Slow", "body": "Never."},
            headers={**user.headers, "grpc-timeout": "100m"},
        )
        assert response.status_code == 504
        await until_idle(database)
        client = Client(service.channel, timeout=0.1)
        request = post_pb2.CreatePostRequest(title="Slow", body="Never.")
        await client.call(client.posts.CreatePost, request, user.metadata)
        assert client.failures[0].code is grpc.StatusCode.DEADLINE_EXCEEDED
        await until_idle(database)
    await database.close()


async def until_idle(database: Database) -> None:
    """Wait until no statement sleeps; fail if it sleeps to its end."""
    query = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'"
    async with database.reading() as connection, asyncio.timeout(SLEEP_SECONDS / 2):
        while (  # noqa: ASYNC110 - asked by SQL
            await connection.execute(sa.text(query))
        ).scalar():
            await asyncio.sleep(0.02)
