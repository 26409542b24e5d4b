"""ExportPosts: every post once, in id order, in bounded memory."""

import asyncio
from contextlib import suppress
from typing import Any

import grpc
import orjson
import psutil
import sqlalchemy as sa

from blatam.post.v1 import post_pb2 as pb
from server.domain.accounts.users import Role
from server.store.connections.connect import Database
from tests.running import RunningService
from tests.status import expect_rpc_error

MANY = 4_000
MIB = 1024 * 1024


async def fill(database_url: str, author_id: int, length: int = 5_000) -> None:
    """Write posts by SQL; the last one is soft-deleted."""
    statement = sa.text(
        "insert into posts (user_id, title, body, state, created_at, updated_at,"
        " deleted_at) select :author, 't' || n, repeat('x', :length),"
        " case when n > :many then 3 else 1 + n % 2 end, now(), now(),"
        " case when n > :many then now() end from generate_series(1, :many + 1) n"
    )
    values = {"author": author_id, "many": MANY, "length": length}
    database = Database(database_url)
    async with database.transaction() as connection:
        await connection.execute(statement, values)
    await database.close()


async def test_export_posts_memory_does_not_grow(
    service: RunningService, database_url: str
) -> None:
    """In id order, with drafts, and complete; memory does not grow."""
    root = await service.signed_in(Role.ADMIN)
    await fill(database_url, root.user.id)
    stream = service.posts.ExportPosts(pb.ExportPostsRequest(), metadata=root.metadata)
    process, last, count, sizes = psutil.Process(), 0, 0, []
    async for answer in stream:
        assert answer.post.id > last
        assert len(answer.post.body) == 5_000
        last = answer.post.id
        count += 1
        if count % 500 == 0:
            sizes.append(process.memory_info().rss)
    assert count == MANY
    assert max(sizes[2:]) - sizes[2] < 8 * MIB  # of 20 MB that passed


async def test_export_posts_slow_reader_holds_no_connection(
    service: RunningService, database_url: str
) -> None:
    """Posts that the client does not read are not fetched, but for the buffers.

    The deadline of the call ends the stream.
    """
    root = await service.signed_in(Role.ADMIN)
    await fill(database_url, root.user.id, length=20_000)
    stream: Any = service.posts.ExportPosts(
        pb.ExportPostsRequest(), metadata=root.metadata, timeout=2
    )
    assert (await stream.read()).post.id
    active = sa.text(
        "select count(*) from pg_stat_activity where datname = current_database()"
        " and pid <> pg_backend_pid() and state <> 'idle' and query ~ 'posts.body'"
    )
    database = Database(database_url)
    idle = 0
    async with database.reading() as connection, asyncio.timeout(1.8):
        while idle < 20:  # until the buffers are full
            busy = (await connection.execute(active)).scalar_one()
            idle = 0 if busy else idle + 1
            await asyncio.sleep(0.01)
    await database.close()
    assert await stream.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    read = 1
    with suppress(grpc.aio.AioRpcError):
        while await stream.read():
            read += 1
    assert read < MANY / 2


async def test_export_posts_resumes_after_an_id(service: RunningService) -> None:
    root = await service.signed_in(Role.ADMIN)
    for n in range(4):
        request = pb.CreatePostRequest(title=str(n), body="x")
        await service.posts.CreatePost(request, metadata=root.metadata)
    all_ids = await exported(service, root.metadata, 0)
    assert len(all_ids) == 4
    assert await exported(service, root.metadata, all_ids[1]) == all_ids[2:]
    assert await exported(service, root.metadata, all_ids[-1]) == []
    error = await expect_rpc_error(exported(service, root.metadata, -1))
    assert error.violations == {("afterId", "int64.gte")}


async def exported(service: RunningService, metadata: Any, after_id: int) -> list[int]:
    request = pb.ExportPostsRequest(after_id=after_id)
    stream = service.posts.ExportPosts(request, metadata=metadata)
    return [answer.post.id async for answer in stream]


async def test_export_posts_over_rest_has_a_post_per_line(
    service: RunningService,
) -> None:
    root = await service.signed_in(Role.ADMIN)
    request = pb.CreatePostRequest(title="One", body="x")
    await service.posts.CreatePost(request, metadata=root.metadata)
    answer = await service.http.get(
        "/api/v1/posts:export",
        headers=root.headers | {"accept": "application/x-ndjson"},
    )
    (post,) = [orjson.loads(line) for line in answer.text.splitlines()]
    assert (post["title"], post["body"]) == ("One", "x")
