"""Several worker processes: one address, no failed call while they come and go."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import grpc
import httpx
import psutil
import pytest
import pytest_asyncio
from sqlalchemy.ext.asyncio import AsyncEngine

from blatam.auth.v1 import auth_pb2
from blatam.auth.v1.auth_pb2_grpc import AuthServiceStub
from blatam.post.v1 import post_pb2
from blatam.post.v1.post_pb2_grpc import PostServiceStub
from blatam.user.v1 import user_pb2
from blatam.user.v1.user_pb2_grpc import UserServiceStub
from server.rpc.contract import service_config
from tests.conftest import Servers, fresh_database, key_space, run, url_of
from tests.e2e.test_command_line import academy_up
from tests.metrics import Scrape
from tests.processes import FREE_PORTS, ROOT, Serving, serving
from tests.running import NO_LIMITS, PASSWORD

SECONDS = 60
CALLERS = 6  # of each kind
WORKERS = 2
Call = Callable[[], Awaitable[object]]


@dataclass(slots=True)
class Calls:
    """Calls of concurrent callers, until the block ends; none may fail."""

    made: int = 0
    errors: list[BaseException] = field(default_factory=list)

    async def more(self, count: int) -> None:
        """Wait until so many more calls have succeeded."""
        end = self.made + count
        async with asyncio.timeout(SECONDS):
            while self.made < end and not self.errors:  # noqa: ASYNC110 - a number
                await asyncio.sleep(0.01)


@dataclass(frozen=True, slots=True)
class Service:
    """A supervisor with two workers, and a signed-in user."""

    serving: Serving
    user_id: int
    token: str

    def workers(self) -> set[int]:
        """Return the processes that listen on the gRPC port."""
        port = int(self.serving.grpc_address.rpartition(":")[2])
        supervisor = psutil.Process(self.serving.process.pid)
        return {p.pid for p in supervisor.children() if _listens(p, port)}

    async def until_ended(self, workers: set[int]) -> None:
        """Wait until these processes have ended."""
        supervisor = psutil.Process(self.serving.process.pid)
        async with asyncio.timeout(SECONDS):
            while workers & {child.pid for child in supervisor.children()}:  # noqa: ASYNC110 - processes
                await asyncio.sleep(0.05)

    async def until_workers(self, condition: Callable[[set[int]], bool]) -> None:
        """Wait until the processes that listen fulfil a condition."""
        async with asyncio.timeout(SECONDS):
            while not condition(self.workers()):  # noqa: ASYNC110 - processes
                await asyncio.sleep(0.05)

    async def calls_of(self, method: str) -> int:
        """Return how many calls of a method the metrics count, over all workers."""
        scrape = await self.scrape()
        return int(scrape.total("grpc_server_handled_total", grpc_method=method))

    async def scrape(self) -> Scrape:
        """Return the metrics of all workers."""
        (line,) = [line for line in self.log_lines() if line.get("port")]
        async with httpx.AsyncClient(timeout=SECONDS) as http:
            page = await http.get(f"http://127.0.0.1:{line['port']}/metrics")
        return Scrape(page.content)

    def log_lines(self) -> list[dict[str, object]]:
        """Return the complete lines of the log."""
        lines = self.serving.log.read_bytes().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith(b"\n")]


def _listens(process: psutil.Process, port: int) -> bool:
    try:
        connections = process.net_connections("tcp")
    except psutil.Error:  # it ends at this moment
        return False
    return any(c.status == "LISTEN" and c.laddr.port == port for c in connections)


@pytest_asyncio.fixture(scope="module")
async def service(
    servers: Servers, admin: AsyncEngine, template: str
) -> AsyncIterator[Service]:
    async with fresh_database(servers, admin, template) as database_url:
        settings = {
            "DATABASE_URL": database_url,
            "REDIS_URL": key_space(servers, 3),
            "SECRET_KEY": "0123456789abcdef" * 4,
            "RATE_LIMITS": json.dumps(NO_LIMITS),
            "WORKERS": str(WORKERS),
            "LAME_DUCK": "0.2s",
            "METRICS_LISTEN": "127.0.0.1:0",
        }
        async with serving(settings) as running:
            async with httpx.AsyncClient(base_url=running.rest) as http:
                async with asyncio.timeout(SECONDS):
                    while (  # noqa: ASYNC110 - asked by HTTP
                        await http.get("/readyz")
                    ).status_code != 200:
                        await asyncio.sleep(0.05)
            yield await _signed_in(running)
            workers = psutil.Process(running.process.pid).children()
        assert workers  # the supervisor has ended by SIGKILL, and they end with it
        assert not psutil.wait_procs(workers, SECONDS)[1]


async def _signed_in(running: Serving) -> Service:
    sign_up = user_pb2.CreateUserRequest(
        email="ana@example.com", username="ana", password=PASSWORD
    )
    user = (await UserServiceStub(running.channel).CreateUser(sign_up)).user
    login = auth_pb2.LoginRequest(identifier="ana", password=PASSWORD)
    tokens = (await AuthServiceStub(running.channel).Login(login)).tokens
    return Service(running, user.id, tokens.access_token)


@asynccontextmanager
async def callers(service: Service) -> AsyncIterator[Calls]:
    """Call from concurrent callers, each over its own connection, with the policy."""
    calls, stopped = Calls(), asyncio.Event()

    async def caller(call: Call) -> None:
        while not stopped.is_set():
            try:
                await call()
            except (grpc.aio.AioRpcError, httpx.HTTPError, AssertionError) as error:
                calls.errors.append(error)
            calls.made += 1
            await asyncio.sleep(0.01)  # workers that start need the CPU, too

    async with httpx.AsyncClient(base_url=service.serving.rest) as http:
        channels = [_channel(service) for _ in range(CALLERS)]
        made = [make(service, c) for c in channels for make in (reads, writes)]
        made += [rest_reads(service, http)] * CALLERS
        tasks = [asyncio.create_task(caller(call)) for call in made]
        try:
            await calls.more(50)
            yield calls
            await calls.more(50)
        finally:
            stopped.set()
            await asyncio.gather(*tasks)
            for channel in channels:
                await channel.close()


def _channel(service: Service) -> grpc.aio.Channel:
    options = [
        ("grpc.service_config", service_config()),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.use_local_subchannel_pool", 1),  # a connection for each channel
    ]
    return grpc.aio.insecure_channel(service.serving.grpc_address, options)


def reads(service: Service, channel: grpc.aio.Channel) -> Call:
    users = UserServiceStub(channel)
    metadata = (("authorization", f"Bearer {service.token}"),)

    async def read() -> None:
        request = user_pb2.GetUserRequest(id=service.user_id)
        await users.GetUser(request, metadata=metadata, timeout=SECONDS)

    return read


def writes(service: Service, channel: grpc.aio.Channel) -> Call:
    posts = PostServiceStub(channel)
    metadata = (("authorization", f"Bearer {service.token}"),)

    async def write() -> None:
        request = post_pb2.CreatePostRequest(
            title="On numbers", body="Many.", request_id=str(uuid4())
        )
        await posts.CreatePost(request, metadata=metadata, timeout=SECONDS)

    return write


def rest_reads(service: Service, http: httpx.AsyncClient) -> Call:
    headers = {"authorization": f"Bearer {service.token}"}
    path = f"/api/v1/users/{service.user_id}"

    async def read() -> None:
        try:
            response = await http.get(path, headers=headers)
        except httpx.TransportError:  # a connection that was closed: one retry
            response = await http.get(path, headers=headers)
        assert response.status_code == 200, response.text

    return read


async def test_start_logs_no_warning(service: Service) -> None:
    """Of any worker: each start is busy while its subscriptions connect to Redis."""
    await service.until_workers(lambda workers: len(workers) == WORKERS)
    lines = [line for line in service.log_lines() if line["level"] != "info"]
    assert {line["event"] for line in lines} <= {"worker ended"}  # of other tests
    assert (await service.scrape()).total("academy_background_restarts_total") == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_supervisor_does_not_load_the_application(service: Service) -> None:
    """It stays small, and what it starts is no copy of a process with gRPC threads."""
    pid = service.serving.process.pid
    text = await asyncio.to_thread(Path(f"/proc/{pid}/maps").read_text)
    assert "python" in text
    assert not [name for name in ("cygrpc", "asyncpg", "sqlalchemy") if name in text]


async def test_rolling_restart_fails_no_call(service: Service) -> None:
    """SIGHUP: each worker is replaced when its successor is ready."""
    old = service.workers()
    assert len(old) == WORKERS
    async with callers(service) as calls:
        service.serving.process.send_signal(signal.SIGHUP)
        await service.until_workers(lambda new: len(new) == WORKERS and not new & old)
    assert calls.errors == []
    await service.until_ended(old)


async def test_killed_worker_fails_no_retried_call(service: Service) -> None:
    """SIGKILL: the other worker answers meanwhile, and another takes its number."""
    old = service.workers()
    killed = min(old)
    async with callers(service) as calls:
        os.kill(killed, signal.SIGKILL)
        await service.until_workers(
            lambda new: len(new) == WORKERS and killed not in new
        )
    assert calls.errors == []


async def test_metrics_count_the_calls_of_all_workers(service: Service) -> None:
    """To the call, and also those of a worker that was killed."""
    before = await service.calls_of("GetUser")
    channels = [_channel(service) for _ in range(10)]
    calls = [reads(service, channel) for channel in channels]
    for _ in range(3):
        await asyncio.gather(*(call() for call in calls))
    for channel in channels:
        await channel.close()
    assert await service.calls_of("GetUser") == before + 30
    old = service.workers()
    for killed in old:
        os.kill(killed, signal.SIGKILL)
    await service.until_workers(lambda new: len(new) == WORKERS and not new & old)
    assert await service.calls_of("GetUser") == before + 30


async def test_metrics_keep_the_counts_of_drained_workers(service: Service) -> None:
    """All of them, also those that no scrape has seen: here HTTP requests."""
    old = service.workers()
    durations = "http_server_request_duration_seconds_count"
    before = (await service.scrape()).total(durations)
    async with httpx.AsyncClient(base_url=service.serving.rest) as http:
        for _ in range(30):
            assert (await http.get("/livez")).status_code == 200
    service.serving.process.send_signal(signal.SIGHUP)
    await service.until_workers(lambda new: len(new) == WORKERS and not new & old)
    await service.until_ended(old)
    assert (await service.scrape()).total(durations) == before + 30


async def test_log_lines_have_the_number_of_their_worker(service: Service) -> None:
    lines = service.log_lines()
    serving_lines = [line for line in lines if line["event"] == "serving"]
    assert {line["worker"] for line in serving_lines} >= {1, 2}
    (listening,) = [line for line in lines if line["event"] == "listening"]
    assert listening["workers"] == WORKERS
    assert "worker" not in listening


def test_up_runs_workers_and_drains_them(state_dir: Path) -> None:
    """Ctrl-C: the workers end first, then the embedded servers, and the exit is 0."""
    with academy_up(state_dir, WORKERS="2") as started:
        url = f"http://{started.http}/api/v1/users"
        user = {"email": "ana@example.com", "username": "ana", "password": PASSWORD}
        assert httpx.post(url, json=user, timeout=SECONDS).status_code == 201
        children = started.processes()[1:]
        own = psutil.Process(started.process.pid).children()  # Postgres's come and go
        names = [child.name() for child in own]
        assert len([name for name in names if "python" in name]) >= WORKERS
        started.process.send_signal(signal.SIGINT)
        assert started.process.wait(SECONDS) == 0
        assert not [child for child in children if child.is_running()]


async def test_workers_report_a_fault_once(
    servers: Servers, admin: AsyncEngine, redis_url: str
) -> None:
    """Each worker finds it, one message is printed, and no worker is left."""
    name = f"old_{uuid4().hex[:8]}"
    await run(admin, f"create database {name}")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server", "serve"),
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            **FREE_PORTS,
            "DATABASE_URL": url_of(servers, name),
            "REDIS_URL": redis_url,
            "SECRET_KEY": "0123456789abcdef" * 4,
            "WORKERS": "2",
        },
        stderr=subprocess.PIPE,
    )
    _, output = await process.communicate()
    assert process.returncode == 1
    message = b"the database schema is older than this release: run academy migrate"
    assert output.count(message) == 1
    await run(admin, f"drop database {name} with (force)")
