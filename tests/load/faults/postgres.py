"""L4 to L6, L9, L10 and L13: Postgres that ends, stops, switches over or is locked."""

import asyncio
import signal
import time
import uuid
from contextlib import suppress
from dataclasses import replace

import asyncpg
import httpx
import sqlalchemy as sa

from blatam.auth.v1 import auth_pb2
from blatam.post.v1 import post_pb2
from tests.load.faults.experiment import at_most, experiment
from tests.load.faults.ledger import Ledger
from tests.load.faults.policies import NONE, open_channel
from tests.load.faults.replicas import Process, Testbed, seconds_until, testbed
from tests.load.faults.restarts import lost_rows
from tests.load.faults.traffic import (
    READS,
    Client,
    Member,
    Result,
    calling,
    list_posts,
    sign_up_members,
    write_post,
)
from tests.load.row import ResultRow
from tests.running import PASSWORD

CALLERS = 20
KILLS = 3
POOL_SIZE = 10
STOP_SECONDS = (3, 10)
DEADLINE_SECONDS = 1.0
LOG_INS = 60


async def until_accepted(bed: Testbed) -> float:
    """Wait until Postgres accepts a connection; return time.monotonic() of that."""
    url = bed.stores.database_url.replace("+asyncpg", "")
    async with asyncio.timeout(60):
        while True:
            with suppress(OSError, asyncpg.PostgresError):
                connection = await asyncpg.connect(url)
                accepted_at = time.monotonic()
                await connection.close()
                return accepted_at
            await asyncio.sleep(0.01)


async def restart_postgres(bed: Testbed) -> float:
    """Start Postgres and return time.monotonic() at which it accepted a connection."""
    accepted = asyncio.create_task(until_accepted(bed))
    await bed.stores.start_postgres()
    return await accepted


def first_success(results: list[Result], after: float) -> float:
    """Return the seconds from a moment until a call ends that has begun after it."""
    ended = [r.ended for r in results if r.ok and r.began >= after]
    return min(ended, default=float("inf")) - after


def gap(results: list[Result], after: float) -> float:
    """Return the seconds from a moment until the last failure or first success."""
    failed = [r.ended - after for r in results if not r.ok and r.began >= after]
    return max([first_success(results, after), *failed])


@experiment("L4", max_seconds=240)
async def postgres_is_killed() -> list[ResultRow]:
    """Kill every process of Postgres and start it again; also start without it."""
    ledger, gaps = Ledger(), []
    async with testbed() as bed:
        replica = await bed.started()
        async with open_channel([replica.grpc], NONE) as channel:
            client = Client(channel)
            members = await sign_up_members(client, ledger, "m", CALLERS)
            async with calling(client, ledger, members):
                for _ in range(KILLS):
                    await asyncio.sleep(1)
                    bed.stores.signal_postgres(signal.SIGKILL)
                    await asyncio.sleep(2)
                    accepted_at = await restart_postgres(bed)
                    await asyncio.sleep(4)
                    needing = [r for r in client.results if r.method == "ListPosts"]
                    gaps.append(gap(needing, accepted_at))
        rows = await lost_rows(bed, ledger, [replica.grpc])
        late = await _start_without_postgres(bed)
    notes = f"each: {', '.join(f'{seconds:.2f}' for seconds in gaps)}"
    return [
        at_most(
            f"kill -9 of Postgres x{KILLS}: last failed read after it accepts",
            max(gaps),
            1,
            "s",
            notes,
        ),
        at_most("start without Postgres: ready after it accepts", late, 1, "s"),
        *rows,
    ]


async def _start_without_postgres(bed: Testbed) -> float:
    """Return how long a process that waits for Postgres takes to be ready."""
    bed.stores.signal_postgres(signal.SIGKILL)
    replica = bed.process()
    async with httpx.AsyncClient() as http:

        async def is_live() -> bool:
            with suppress(httpx.HTTPError):
                return (await http.get(f"{replica.url}/livez")).is_success
            return False

        await replica.launch()
        await seconds_until(is_live, 60)
        assert not await replica.is_ready(http)
        ready = asyncio.create_task(seconds_until(lambda: replica.is_ready(http), 60))
        accepted_at = await restart_postgres(bed)
        await ready
        return time.monotonic() - accepted_at


@experiment("L5", max_seconds=180)
async def backends_are_stopped() -> list[ResultRow]:
    """SIGSTOP every backend while REST callers call with a deadline of a second."""
    overruns, recoveries = [], []
    async with testbed() as bed:
        replica = await bed.started()
        async with open_channel([replica.grpc], NONE) as channel:
            members = await sign_up_members(Client(channel), Ledger(), "m", CALLERS)
        limits = httpx.Limits(max_connections=2 * CALLERS)
        async with httpx.AsyncClient(timeout=30, limits=limits) as http:
            for seconds in STOP_SECONDS:
                bed.stores.signal_backends(signal.SIGSTOP)
                overruns += await _timed_reads(http, replica, members, seconds)
                bed.stores.signal_backends(signal.SIGCONT)
                recoveries.append(await _recovered(http, replica, members[0]))
    stopped = " and ".join(map(str, STOP_SECONDS))
    return [
        at_most(
            f"SIGSTOP of the backends for {stopped} s: deadline exceeded by",
            max(overruns) * 1e3,
            100,
            "ms",
            f"{len(overruns)} calls with a deadline of {DEADLINE_SECONDS:.0f} s",
        ),
        at_most("recovery after SIGCONT", max(recoveries), 1, "s"),
    ]


async def _timed_reads(
    http: httpx.AsyncClient, replica: Process, members: list[Member], seconds: float
) -> list[float]:
    """Let members read; return by how much each call exceeded its deadline."""
    end, overruns = time.monotonic() + seconds, []

    async def read(member: Member) -> None:
        while time.monotonic() < end:
            started = time.monotonic()
            await _list_posts_over_rest(http, replica, member)
            overruns.append(time.monotonic() - started - DEADLINE_SECONDS)
            await asyncio.sleep(0.1)

    await asyncio.gather(*(read(member) for member in members))
    return overruns


async def _list_posts_over_rest(
    http: httpx.AsyncClient, replica: Process, member: Member
) -> bool:
    headers = {**dict(member.metadata), "grpc-timeout": "1S"}
    url = f"{replica.url}/api/v1/posts?author_id={member.id}"
    return (await http.get(url, headers=headers)).is_success


async def _recovered(
    http: httpx.AsyncClient, replica: Process, member: Member
) -> float:
    return await seconds_until(lambda: _list_posts_over_rest(http, replica, member))


@experiment("L6", max_seconds=180)
async def postgres_switches_over() -> list[ResultRow]:
    """Old connections become read-only, as after a failover; then all are ended."""
    ledger = Ledger()
    async with testbed() as bed:
        replica = await bed.started()
        async with open_channel([replica.grpc], NONE) as channel:
            client = Client(channel)
            members = await sign_up_members(client, ledger, "m", CALLERS)
            client.results.clear()
            operations = {**READS, write_post: 10}
            async with calling(client, ledger, members, operations):
                await asyncio.sleep(2)
                switched_at = time.monotonic()
                await _make_open_connections_read_only(bed)
                await asyncio.sleep(5)
                ended_at = time.monotonic()
                await _end_connections(bed)
                await asyncio.sleep(5)
        switched = [r for r in client.results if switched_at <= r.ended < ended_at]
        ended = [r for r in client.results if r.ended >= ended_at]
        return [
            *_failover_rows("read-only failover", switched, switched_at),
            *_failover_rows("pg_terminate_backend", ended, ended_at),
            *await lost_rows(bed, ledger, [replica.grpc]),
        ]


def _failover_rows(name: str, results: list[Result], at: float) -> list[ResultRow]:
    failed = [r for r in results if not r.ok]
    writes = [r for r in failed if r.method == "CreatePost"]
    recovery = max((r.ended - at for r in failed), default=0.0)
    details = "; ".join(sorted({f"{r.code.name} {r.details[:60]}" for r in failed}))
    return [
        at_most(f"{name}: reads failed", len(failed) - len(writes), 0, "calls"),
        at_most(f"{name}: writes failed", len(writes), POOL_SIZE, "calls", details),
        at_most(f"{name}: last failure after", recovery, 2, "s"),
    ]


async def _make_open_connections_read_only(bed: Testbed) -> None:
    """Make present connections read-only; later ones take the setting of the role."""
    async with bed.database.alone() as connection:
        for statement in (
            "alter role blatam set default_transaction_read_only = off",
            "alter system set default_transaction_read_only = on",
            "select pg_reload_conf()",
        ):
            await connection.execute(sa.text(statement))


async def _end_connections(bed: Testbed) -> None:
    async with bed.database.alone() as connection:
        await connection.execute(
            sa.text(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where backend_type = 'client backend' and pid <> pg_backend_pid()"
            )
        )


@experiment("L9", max_seconds=120)
async def users_is_locked() -> list[ResultRow]:
    """Log in to many accounts while the table of users is locked."""
    async with testbed() as bed:
        replica = await bed.started()
        async with open_channel([replica.grpc], NONE) as channel:
            client = Client(channel)
            members = await sign_up_members(client, Ledger(), "m", 4)
            client.results.clear()
            async with bed.database.transaction() as connection:
                await connection.execute(sa.text("lock table users"))
                for _ in range(3):
                    await asyncio.gather(*(_unknown(client) for _ in range(LOG_INS)))
            refused = [r.seconds for r in client.results]
            assert not any(r.ok for r in client.results)
            recovery = await seconds_until(lambda: _reads(client, members[0]))
    name = f"users locked, {LOG_INS} log-ins at once: slowest refusal"
    return [at_most(name, max(refused), 1, "s", f"recovered in {recovery:.2f} s")]


async def _unknown(client: Client) -> None:
    """Log in to an account that does not exist."""
    request = auth_pb2.LoginRequest(
        identifier=f"unknown{uuid.uuid4().hex[:12]}", password=PASSWORD
    )
    await client.call(client.auth.Login, request)


async def _reads(client: Client, member: Member) -> bool:
    await list_posts(client, Ledger(), member)
    return client.results[-1].ok


@experiment("L10", max_seconds=120)
async def caller_gives_up() -> list[ResultRow]:
    """Call with a deadline of 100 ms while each new post takes Postgres 5 s."""
    delays = []
    async with testbed() as bed:
        replica = await bed.started()
        async with open_channel([replica.grpc], NONE) as channel:
            client = Client(channel)
            (member,) = await sign_up_members(client, Ledger(), "m", 1)
            await client.call(client.posts.CreatePost, _post(), member.metadata)
            await _slow_down_posts(bed)
            client.timeout = 0.1
            for _ in range(10):
                started = time.monotonic()
                await client.call(client.posts.CreatePost, _post(), member.metadata)
                await seconds_until(lambda: _is_idle(bed), interval=0.005)
                delays.append(time.monotonic() - started - client.timeout)
    name = "deadline 100 ms, statement of 5 s: Postgres idle after the deadline"
    return [
        at_most(
            name,
            max(delays) * 1e3,
            300,
            "ms",
            ", ".join(f"{seconds * 1e3:.0f}" for seconds in delays),
        )
    ]


def _post() -> post_pb2.CreatePostRequest:
    return post_pb2.CreatePostRequest(title="On numbers", body="There are many.")


async def _slow_down_posts(bed: Testbed) -> None:
    async with bed.database.transaction() as connection:
        for statement in (
            "create function wait() returns trigger language plpgsql as "
            "$$ begin perform pg_sleep(5); return new; end $$",
            "create trigger wait before insert on posts for each row "
            "execute function wait()",
        ):
            await connection.execute(sa.text(statement))


async def _is_idle(bed: Testbed) -> bool:
    """Return whether no backend waits in pg_sleep."""
    query = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'"
    async with bed.database.reading() as connection:
        return (await connection.execute(sa.text(query))).scalar() == 0


@experiment("L13", max_seconds=300)
async def everything_is_killed() -> list[ResultRow]:
    """Kill the service and Postgres together while callers write."""
    ledger = Ledger()
    async with testbed() as bed:
        replica = await bed.started()
        async with open_channel([replica.grpc], NONE) as channel:
            client = Client(channel)
            members = await sign_up_members(client, ledger, "m", CALLERS)
        for _ in range(KILLS):
            async with open_channel([replica.grpc], NONE) as channel:
                client = Client(channel)
                async with calling(client, ledger, members, pause=0.01) as traffic:
                    await asyncio.sleep(3)
                    bed.stores.signal_postgres(signal.SIGKILL)
                    await replica.kill()
                    traffic.stopping.set()
            await bed.stores.start_postgres()
            await replica.start()
        name = f"kill -9 of service and Postgres x{KILLS}"
        (row,) = await lost_rows(bed, ledger, [replica.grpc])
        ended = f"{len(ledger.ended_sessions)} log-outs, {len(ledger.posts)} posts"
        return [replace(row, name=f"{name}: {row.name}", notes=f"{row.notes}; {ended}")]
