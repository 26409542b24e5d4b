"""L8: a slow, silent or broken network between edge, service and Postgres."""

import asyncio
import time
import uuid
from contextlib import suppress

import httpx
import sqlalchemy as sa

from blatam.post.v1 import post_pb2
from tests.fault_proxy import (
    COMMITTED,
    FaultProxy,
    fault_proxy,
    proxied_database_url,
    to_address,
    to_postgres,
)
from tests.load.faults.experiment import at_least, at_most, experiment
from tests.load.faults.ledger import Ledger
from tests.load.faults.policies import NONE, SHIPPED, open_channel
from tests.load.faults.replicas import Process, Testbed, seconds_until, testbed
from tests.load.faults.traffic import Client, Member, sign_up_members
from tests.load.row import ResultRow

LATENCY_SECONDS = 0.05
BYTES_PER_SECOND = 64 * 1024
READS = 200
MAX_DETECTION_SECONDS = 35.0
CUTS = 20
MEMBERS = 10


@experiment("L8", max_seconds=300)
async def network_fails() -> list[ResultRow]:
    """Put a fault proxy between edge and service, then before Postgres."""
    async with testbed() as bed:
        return [*await _edge_rows(bed), *await _commit_rows(bed)]


async def _edge_rows(bed: Testbed) -> list[ResultRow]:
    service = await bed.started()
    async with fault_proxy(to_address(service.grpc)) as proxy:
        command = ("-m", "server", "edge", "--server", proxy.address)
        edge = await bed.started(command=command)
        async with (
            open_channel([service.grpc], NONE) as channel,
            httpx.AsyncClient(base_url=edge.url, timeout=60) as http,
        ):
            members = await sign_up_members(Client(channel), Ledger(), "edge", MEMBERS)
            rows = [
                await _goodput(proxy, http, members[0]),
                *await _black_hole(proxy, http, members[0]),
            ]
        rows.append(await _sessions_after_kills(service, edge, members))
    return rows


async def _goodput(
    proxy: FaultProxy, http: httpx.AsyncClient, member: Member
) -> ResultRow:
    """Read through a slow connection, several at a time."""
    proxy.latency, proxy.bytes_per_second = LATENCY_SECONDS, BYTES_PER_SECOND
    slots, started = asyncio.Semaphore(10), time.monotonic()

    async def read() -> bool:
        async with slots:
            return await _is_read(http, member)

    results = await asyncio.gather(*(read() for _ in range(READS)))
    rate = READS / (time.monotonic() - started)
    proxy.latency = proxy.bytes_per_second = 0
    link = f"{LATENCY_SECONDS * 1e3:.0f} ms each way, {BYTES_PER_SECOND // 1024} KiB/s"
    name = f"edge to service, {link}: calls that succeed"
    return at_least(name, 100 * sum(results) / READS, 99, "%", f"{rate:.0f}/s")


async def _is_read(http: httpx.AsyncClient, member: Member) -> bool:
    with suppress(httpx.HTTPError):
        headers = dict(member.metadata)
        return (await http.get("/api/v1/users/me", headers=headers)).is_success
    return False


async def _black_hole(
    proxy: FaultProxy, http: httpx.AsyncClient, member: Member
) -> list[ResultRow]:
    """Drop every packet between edge and service, without closing a connection."""
    proxy.silent = True
    started = time.monotonic()
    async with asyncio.timeout(MAX_DETECTION_SECONDS):
        status = (
            await http.get("/api/v1/users/me", headers=dict(member.metadata))
        ).status_code
    detected = time.monotonic() - started
    proxy.silent = False
    recovery = await seconds_until(lambda: _is_read(http, member), 60)
    return [
        at_most(
            "edge to service, packets dropped: a call is refused after",
            detected,
            5,
            "s",
            f"status {status}",
        ),
        at_most("recovery after the packets pass again", recovery, 5, "s"),
    ]


async def _sessions_after_kills(
    service: Process, edge: Process, members: list[Member]
) -> ResultRow:
    """Kill and restart edge and service; every session must be usable."""
    for process in (service, edge):
        await process.kill()
        await process.start()
    lost = 0
    async with httpx.AsyncClient(base_url=edge.url, timeout=30) as http:
        for member in members:
            accepted = await _is_read(http, member)
            body = {"refreshToken": member.tokens.refresh_token}
            refreshed = await http.post("/api/v1/auth/refresh", json=body)
            lost += not (accepted and refreshed.is_success)
    return at_most("edge and service killed: sessions lost", lost, 0, "sessions")


async def _commit_rows(bed: Testbed) -> list[ResultRow]:
    """Reset the connection to Postgres after the commit, before its answer."""
    url = bed.stores.database_url
    async with fault_proxy(to_postgres(url)) as proxy:
        settings = {"DATABASE_URL": proxied_database_url(url, proxy)}
        service = await bed.started(settings)
        async with open_channel([service.grpc], SHIPPED) as channel:
            client = Client(channel)
            (member,) = await sign_up_members(client, Ledger(), "writer", 1)
            client.results.clear()
            for _ in range(CUTS):
                await _write_and_cut(client, member, proxy)
        async with bed.database.reading() as connection:
            query = sa.text("select count(*) from posts where title = 'Cut'")
            posts = (await connection.execute(query)).scalar() or 0
    acknowledged = sum(result.ok for result in client.results)
    notes = f"{acknowledged} of {CUTS} acknowledged; {proxy.resets} resets"
    notes += f"; {client.summary()}"
    duplicates, missing = max(posts - CUTS, 0), max(acknowledged - posts, 0)
    return [
        at_most("cut after commit: duplicate posts", duplicates, 0, "posts", notes),
        at_most("cut after commit: acknowledged posts lost", missing, 0, "posts"),
    ]


async def _write_and_cut(client: Client, member: Member, proxy: FaultProxy) -> None:
    """Write a post; its first commit is not answered."""
    resets, proxy.reset_on = proxy.resets, COMMITTED
    request = post_pb2.CreatePostRequest(
        title="Cut", body="Once.", request_id=str(uuid.uuid4())
    )
    call = asyncio.create_task(
        client.call(client.posts.CreatePost, request, member.metadata)
    )

    async def is_cut() -> bool:
        return proxy.resets > resets or call.done()

    await seconds_until(is_cut, interval=0.001)
    proxy.reset_on = b""
    await call
