"""ExportUsers: every account once, in id order, in bounded memory."""

import itertools
from typing import Any

import orjson
import psutil
import sqlalchemy as sa

from blatam.user.v1 import user_pb2 as pb
from server.domain.accounts.users import Role
from server.store.connections.connect import Database
from tests.running import RunningService
from tests.status import expect_rpc_error

MANY = 20_000
MIB = 1024 * 1024


async def fill(database: Database, count: int) -> None:
    """Write accounts by SQL."""
    statement = sa.text(
        "insert into users (email, username, username_folded, hashed_password, role,"
        " created_at, updated_at)"
        " select 'f' || n || '@x.co', 'f' || n, 'f' || n, '', 1, now(), now()"
        " from generate_series(1, :count) n"
    )
    async with database.transaction() as connection:
        await connection.execute(statement, {"count": count})


async def test_export_users_memory_does_not_grow(
    service: RunningService, database_url: str
) -> None:
    """In id order and complete; memory does not grow with the number of accounts."""
    root = await service.signed_in(Role.ADMIN)
    database = Database(database_url)
    await fill(database, MANY)
    await database.close()
    stream = service.users.ExportUsers(pb.ExportUsersRequest(), metadata=root.metadata)
    process, last, sizes = psutil.Process(), 0, []
    async for place, answer in aenumerate(stream):
        assert answer.user.id > last
        assert answer.user.email
        last = answer.user.id
        if place % 1000 == 0:
            sizes.append(process.memory_info().rss)
    assert place == MANY  # and root
    assert max(sizes[2:]) - sizes[2] < 8 * MIB


async def aenumerate(stream: Any) -> Any:
    numbers = itertools.count()
    async for item in stream:
        yield next(numbers), item


async def test_export_users_resumes_after_an_id(service: RunningService) -> None:
    root = await service.signed_in(Role.ADMIN)
    for _ in range(3):
        await service.sign_up()
    all_ids = await exported(service, root.metadata, 0)
    assert len(all_ids) == 4
    assert await exported(service, root.metadata, all_ids[1]) == all_ids[2:]
    assert await exported(service, root.metadata, all_ids[-1]) == []
    error = await expect_rpc_error(first(service, root.metadata, -1))
    assert error.violations == {("afterId", "int64.gte")}


async def exported(service: RunningService, metadata: Any, after_id: int) -> list[int]:
    request = pb.ExportUsersRequest(after_id=after_id)
    stream = service.users.ExportUsers(request, metadata=metadata)
    return [answer.user.id async for answer in stream]


async def first(service: RunningService, metadata: Any, after_id: int) -> object:
    request = pb.ExportUsersRequest(after_id=after_id)
    return await service.users.ExportUsers(request, metadata=metadata).read()


async def test_export_users_over_rest_has_a_user_per_line(
    shared: RunningService,
) -> None:
    root = await shared.signed_in(Role.ADMIN)
    answer = await shared.http.get(
        f"/api/v1/users:export?after_id={root.user.id - 1}",
        headers=root.headers | {"accept": "application/x-ndjson"},
    )
    users = [orjson.loads(line) for line in answer.text.splitlines()]
    assert users[0]["username"] == root.user.username
    assert users[0]["email"] == root.user.email
