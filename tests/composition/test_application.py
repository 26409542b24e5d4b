"""The application: in which order it starts, drains and stops."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from datetime import timedelta

import httpx
import pytest
import sqlalchemy as sa

from server.composition import application as composed
from server.composition.accounts import SERVICE as USER_SERVICE
from server.composition.application import (
    Application,
    build_application,
    build_features,
    chain_dependencies,
)
from server.composition.auth import authentication
from server.composition.feature import (
    Drain,
    DrainStage,
    Feature,
    fold_servicers,
    run_features,
)
from server.composition.resources import open_resources
from server.composition.startup import Startup
from server.composition.stores import build_stores
from server.config import ConfigurationError, load
from server.domain.errors import StoreUnavailable
from server.rpc.contract import ContractError
from server.rpc.listener import serve_methods
from server.workers.poller import Poller
from server.workers.supervisor import Subscription, Task
from tests.logs import captured_lines

NEVER = timedelta(hours=1)
Step = Callable[[], Awaitable[None]]


class Recorder:
    """Makes tasks and drains that append their name to `steps`."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def step(self, name: str) -> Step:
        async def run() -> None:
            self.steps.append(name)

        return run

    def poller(self, name: str, *, before_serving: bool) -> Poller:
        refresh = self.step(f"refresh {name}")
        return Poller(name, refresh, NEVER, before_serving=before_serving)

    def subscription(self, name: str) -> Subscription:
        async def listen() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                self.steps.append(f"cancel {name}")

        return Subscription(name, listen)

    def drain(self, stage: DrainStage) -> Drain:
        return Drain(stage, self.step(f"drain {stage.name}"))


async def test_application_refreshes_before_serving_in_feature_order() -> None:
    """Pollers that serving does not depend on run in the background only."""
    recorder = Recorder()
    features = [
        Feature(
            tasks=(
                recorder.poller("keys", before_serving=True),
                recorder.poller("retention", before_serving=False),
            )
        ),
        Feature(tasks=(recorder.poller("health", before_serving=True),)),
    ]
    async with run_features(features, Startup()):
        assert recorder.steps == ["refresh keys", "refresh health"]


async def test_application_does_not_start_when_a_refresh_fails() -> None:
    """An error that waiting cannot fix reaches the caller; no task runs."""
    recorder = Recorder()

    async def fail() -> None:
        raise ValueError("unforeseen")

    features = [
        Feature(
            tasks=(
                Poller("keys", fail, NEVER, before_serving=True),
                recorder.poller("health", before_serving=True),
            )
        )
    ]
    with pytest.raises(ValueError, match="unforeseen"):
        async with run_features(features, Startup()):
            pass
    assert recorder.steps == []


async def test_startup_waits_in_the_background_while_postgres_is_away() -> None:
    """Steps begin again from the first one; tasks run once all have succeeded."""
    recorder = Recorder()
    away = [StoreUnavailable(), StoreUnavailable()]

    async def read_keys() -> None:
        if away:
            raise away.pop()
        recorder.steps.append("refresh keys")

    startup = Startup(recorder.step("ping"))
    poller = Poller("keys", read_keys, NEVER, before_serving=True)
    features = [Feature(tasks=(poller, recorder.subscription("task")))]
    async with run_features(features, startup):
        assert not startup.complete
        async with asyncio.timeout(10):
            while not startup.complete:  # noqa: ASYNC110 - a flag, not an event
                await asyncio.sleep(0.01)
        startup.check()
        await asyncio.sleep(0.01)
    assert recorder.steps[:4] == ["ping", "ping", "ping", "refresh keys"]
    assert recorder.steps[-1] == "cancel task"


async def test_startup_ends_with_an_error_that_waiting_cannot_mend() -> None:
    """`check` raises it, so that the process can end with a message."""
    errors: list[Exception] = [ConfigurationError("old schema"), StoreUnavailable()]

    async def check_schema() -> None:
        raise errors.pop()

    startup = Startup(check_schema)
    async with run_features([], startup):
        startup.check()
        async with asyncio.timeout(10):
            while errors:  # noqa: ASYNC110 - a list, not an event
                await asyncio.sleep(0.01)
        await asyncio.sleep(0)
        with pytest.raises(ConfigurationError, match="old schema"):
            startup.check()
    assert not startup.complete


async def test_application_drains_in_stage_order_and_cancels_tasks_last() -> None:
    """Whatever the order of features: health, streams, outbox, connections, tasks."""
    recorder = Recorder()
    features = [
        Feature(drains=(recorder.drain(DrainStage.CONNECTIONS),)),
        Feature(
            tasks=(recorder.subscription("task"),),
            drains=(
                recorder.drain(DrainStage.OUTBOX),
                recorder.drain(DrainStage.STREAMS),
            ),
        ),
        Feature(drains=(recorder.drain(DrainStage.HEALTH),)),
    ]
    async with run_features(features, Startup()) as drain_calls:
        await asyncio.sleep(0)
        await drain_calls()
        assert recorder.steps == ["drain HEALTH", "drain STREAMS"]
    assert recorder.steps[2:] == ["drain OUTBOX", "drain CONNECTIONS", "cancel task"]


async def test_application_continues_draining_after_failure() -> None:
    recorder = Recorder()

    async def fail() -> None:
        raise ValueError("unforeseen")

    features = [
        Feature(
            drains=(
                Drain(DrainStage.HEALTH, fail),
                recorder.drain(DrainStage.STREAMS),
            )
        )
    ]
    with captured_lines(event="drain failed") as lines:
        async with run_features(features, Startup()) as drain_calls:
            await drain_calls()
    assert recorder.steps == ["drain STREAMS"]
    assert [line["stage"] for line in lines] == ["HEALTH"]


class SecondServicer:
    """Implements an RPC that UserServicer implements, too."""

    async def GetUser(self) -> None:  # noqa: N802 - the RPC's name
        raise NotImplementedError


def settings(database_url: str, redis_url: str) -> dict[str, str]:
    return {
        "database_url": database_url,
        "redis_url": redis_url,
        "secret_key": "0123456789abcdef" * 4,
    }


async def test_application_refuses_rpc_with_two_servicers(
    database_url: str, redis_url: str
) -> None:
    """The error names the RPC and both classes."""
    async with open_resources(load(**settings(database_url, redis_url))) as resources:
        stores = build_stores(resources)
        sign_in = authentication(resources, stores)
        features = [
            *build_features(resources, stores, sign_in),
            Feature(servicers={USER_SERVICE: (SecondServicer(),)}),
        ]
        dependencies = chain_dependencies(resources, stores, sign_in, Startup())
        with pytest.raises(ContractError) as caught:
            serve_methods(fold_servicers(features), dependencies)
    assert str(caught.value) == (
        "blatam.user.v1.UserService/GetUser: "
        "more than one servicer implements it: UserServicer and SecondServicer"
    )


async def test_application_features_state_what_serving_depends_on(
    database_url: str, redis_url: str
) -> None:
    """Keys, revocations and streams are known before the first call."""
    async with open_resources(load(**settings(database_url, redis_url))) as resources:
        stores = build_stores(resources)
        sign_in = authentication(resources, stores)
        features = build_features(resources, stores, sign_in)
        tasks: list[Task] = [task for feature in features for task in feature.tasks]
        required = [
            task.name
            for task in tasks
            if isinstance(task, Poller) and task.before_serving
        ]
    assert required == ["signing keys", "signals"]
    names = [task.name for task in tasks]
    assert len(set(names)) == len(names)


async def test_application_builds_its_transports_before_its_tasks_start(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Building the edge blocks the event loop, and tasks would time out meanwhile."""
    steps: list[str] = []

    def recorded(name: str) -> None:
        function = getattr(composed, name)

        def record(*args: object) -> object:
            steps.append(name)
            return function(*args)

        monkeypatch.setattr(composed, name, record)

    recorded("build_transports")
    recorded("run_features")
    async with (
        open_resources(load(**settings(database_url, redis_url))) as resources,
        build_application(resources),
    ):
        assert steps == ["build_transports", "run_features"]


async def test_application_health_is_not_serving_once_drained(
    database_url: str, redis_url: str
) -> None:
    """Built, it is ready; drained, it is not."""
    async with (
        open_resources(load(**settings(database_url, redis_url))) as resources,
        build_application(resources) as application,
    ):
        assert await readiness(application) == 200
        await application.drain()
        assert await readiness(application) == 503


async def readiness(application: Application) -> int:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(application.http), base_url="http://academy.test"
    ) as client:
        return (await client.get("/readyz")).status_code


async def test_resources_close_in_reverse_order(
    database_url: str, redis_url: str
) -> None:
    """When Postgres is closed, hashing threads are, and Redis still marks writes."""
    states: list[tuple[bool, bool]] = []
    threads_before = set(threading.enumerate())  # of other services in this process
    async with open_resources(load(**settings(database_url, redis_url))) as resources:
        hashing_threads = set(threading.enumerate()) - threads_before
        hashing_threads = {t for t in hashing_threads if t.name.startswith("hash-")}
        await resources.redis.ping()
        (connection,) = resources.redis.connection_pool._available_connections

        def state(_engine: object = None) -> tuple[bool, bool]:
            hashing = any(thread.is_alive() for thread in hashing_threads)
            return hashing, bool(connection.is_connected)

        engine = resources.database.engine.sync_engine
        sa.event.listen(engine, "engine_disposed", lambda _: states.append(state()))
        assert state() == (True, True)
    assert states == [(False, True)]
