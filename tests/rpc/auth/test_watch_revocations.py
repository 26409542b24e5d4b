"""WatchRevocations: sessions revoked before `exp`, for services that verify offline."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import grpc
import orjson
import pytest
import sqlalchemy as sa

from blatam.auth.v1 import auth_pb2 as pb
from server.domain.accounts.users import Role
from server.store.connections.connect import Database
from tests.running import RunningService, running
from tests.status import expect_rpc_error

Stream = Any


@asynccontextmanager
async def watching(
    service: RunningService, metadata: Any, token: str = ""
) -> AsyncIterator[tuple[Stream, set[str], str]]:
    """Open a stream; return it with the stored session ids and the token after them."""
    request = pb.WatchRevocationsRequest(resume_token=token)
    stream: Stream = service.auth.WatchRevocations(request, metadata=metadata)
    sent = set()
    try:
        async with asyncio.timeout(10):
            while (answer := await stream.read()).HasField("revocation"):
                sent.add(answer.revocation.session_id)
        assert answer.HasField("snapshot_end")
        yield stream, sent, answer.resume_token
    finally:
        stream.cancel()


async def until_sent(stream: Stream, session_id: str, seconds: float = 10) -> str:
    """Read until a session is sent; return the token of that message."""
    async with asyncio.timeout(seconds):
        while True:
            answer = await stream.read()
            if answer.revocation.session_id == session_id:
                assert answer.revocation.revoked_at.seconds
                lasts = answer.revocation.forget_at.seconds
                assert lasts - answer.revocation.revoked_at.seconds == 16 * 60
                return str(answer.resume_token)


async def test_watch_revocations_sends_stored_then_new(shared: RunningService) -> None:
    """R22: a service receives each revocation within a second."""
    root = await shared.signed_in(Role.ADMIN)
    before, after = await shared.signed_in(), await shared.signed_in()
    await shared.auth.Logout(pb.LogoutRequest(), metadata=before.metadata)
    async with watching(shared, root.metadata) as (stream, sent, _):
        assert before.tokens.session_id in sent
        assert after.tokens.session_id not in sent
        await shared.auth.Logout(pb.LogoutRequest(), metadata=after.metadata)
        token = await until_sent(stream, after.tokens.session_id, seconds=1)
    later = await shared.signed_in()
    await shared.auth.Logout(pb.LogoutRequest(), metadata=later.metadata)
    async with watching(shared, root.metadata, token) as (_, sent, _):
        assert later.tokens.session_id in sent
        assert before.tokens.session_id not in sent


async def test_watch_revocations_sends_late_commit(
    service: RunningService, database_url: str
) -> None:
    """A token taken between two overlapping transactions misses neither."""
    root, ana = await service.signed_in(Role.ADMIN), await service.signed_in()
    database, late = Database(database_url), uuid4()
    async with watching(service, root.metadata) as (stream, _, _):
        async with database.transaction() as connection:
            await end(connection, late)
            await service.auth.Logout(pb.LogoutRequest(), metadata=ana.metadata)
            token = await until_sent(stream, ana.tokens.session_id)
        await until_sent(stream, late.hex)
    async with watching(service, root.metadata, token) as (_, sent, _):
        assert late.hex in sent
    await database.close()


async def end(connection: Any, session_id: UUID) -> None:
    statement = sa.text(
        "insert into revocations (session_id, ended_at) values (:id, now())"
    )
    await connection.execute(statement, {"id": session_id})


async def test_watch_revocations_works_without_redis(database_url: str) -> None:
    """R8, R22: each process polls twice a second."""
    nowhere = "unix:///nowhere"
    async with (
        running(database_url, nowhere) as one,
        running(database_url, nowhere) as two,
    ):
        root, ana = await one.signed_in(Role.ADMIN), await one.signed_in()
        async with watching(two, root.metadata) as (stream, _, _):
            await one.auth.Logout(pb.LogoutRequest(), metadata=ana.metadata)
            await until_sent(stream, ana.tokens.session_id, seconds=1)


async def test_watch_revocations_ends_when_server_stops(
    service: RunningService,
) -> None:
    """UNAVAILABLE, so that the client reconnects; a new stream gets the same error."""
    root = await service.signed_in(Role.ADMIN)
    async with watching(service, root.metadata) as (stream, _, _):
        await service.drain()
        for call in (stream, service.auth.WatchRevocations(
            pb.WatchRevocationsRequest(), metadata=root.metadata
        )):  # fmt: skip
            error = await expect_rpc_error(call.read())
            assert error.code is grpc.StatusCode.UNAVAILABLE
            assert error.reason == "SERVER_STOPPING"


@pytest.mark.parametrize("token", ["x", "-1", "\u0665", "01", "1\n", " 1", "1_0"])
async def test_watch_revocations_refuses_invalid_resume_token(
    shared: RunningService, token: str
) -> None:
    root = await shared.signed_in(Role.ADMIN)
    request = pb.WatchRevocationsRequest(resume_token=token)
    call = shared.auth.WatchRevocations(request, metadata=root.metadata)
    assert (await expect_rpc_error(call.read())).violations == {
        ("resumeToken", "resume_token.foreign")
    }


async def test_watch_revocations_is_event_stream_over_rest(
    shared: RunningService,
) -> None:
    """A browser's EventSource resumes after `id:` with Last-Event-ID."""
    root, ana = await shared.signed_in(Role.ADMIN), await shared.signed_in()
    await shared.auth.Logout(pb.LogoutRequest(), metadata=ana.metadata)
    wanted = {"accept": "text/event-stream", "grpc-timeout": "300m"}
    path = "/api/v1/auth/revocations:watch"
    answer = await shared.http.get(path, headers=root.headers | wanted)
    lines = answer.text.splitlines()
    events = [orjson.loads(line[6:]) for line in lines if line.startswith("data: {")]
    named = {event.get("revocation", {}).get("sessionId") for event in events}
    assert ana.tokens.session_id in named
    ends = [event for event in events if "snapshotEnd" in event]
    assert f"id: {ends[0]['resumeToken']}" in lines
    again = wanted | {"last-event-id": "x"}
    answer = await shared.http.get(path, headers=root.headers | again)
    assert answer.status_code == 400
