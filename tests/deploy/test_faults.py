"""Each fault is named once: by an alert, by `academy top`, by `academy doctor`.

The application runs in this process. Its metrics are scraped before and during a
fault, and count as two scrapes of Prometheus with a minute between them.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc

from blatam.auth.v1 import auth_pb2
from server.cli.monitoring.checks import run_checks
from server.cli.monitoring.faults import faults
from server.cli.monitoring.findings import Finding
from server.cli.monitoring.process_checks import check_process
from server.cli.monitoring.samples import Interval, Scrape
from server.composition.listeners.metrics import listening_metrics
from server.config import load
from tests.conftest import ready
from tests.deploy.promql import Samples
from tests.deploy.rules import load_rules, pending_alerts
from tests.deploy.situations import ONE
from tests.running import PASSWORD, RunningService, running
from tests.silent_proxy import silent_proxy

CLOSED_PORT = "127.0.0.1:1"
RULES = load_rules()
# A consequence of a fault, such as an error, needs five minutes to send an alert.
CAUSES = {r.name for r in RULES if r.labels.get("component") != "calls"}
CHECKS = {
    "postgres",
    "replica",
    "schema",
    "redis",
    "mail",
    "hashing",
    "event loop",
    "metrics",
}
LOOP_LAG = re.compile(r"^academy_event_loop_lag_seconds.*\n", re.MULTILINE)


@dataclass
class Monitored:
    """A service with a metrics listener, and the texts of the scrapes so far."""

    service: RunningService
    address: str
    settings: dict[str, Any]
    loop_is_measured: bool = False
    texts: list[str] = field(default_factory=list)

    async def scrape(self) -> None:
        """Read the metrics. A slow machine is no fault of the event loop."""
        text = (await self.service.render_metrics()).decode()
        self.texts.append(text if self.loop_is_measured else LOOP_LAG.sub("", text))

    async def scrape_until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            await self.scrape()
            while not condition():
                await asyncio.sleep(0.05)
                self.texts.pop()
                await self.scrape()

    def alerts(self) -> set[str]:
        """Return the alerts about causes whose condition is true."""
        samples = Samples()
        for minute, text in enumerate(self.texts):
            samples.add_text(60.0 * minute, text, **ONE)
        return CAUSES & pending_alerts(RULES, samples, 60.0 * minute).keys()

    def top(self) -> list[str]:
        """Return the components that `academy top` names."""
        scrapes = [Scrape.parse(text, 2.0 * n) for n, text in enumerate(self.texts)]
        return [fault.component for fault in faults(Interval(*scrapes))]

    async def doctor(self, *, with_event_loop: bool = False) -> list[str]:
        """Return the checks of `academy doctor` that fail.

        It has an event loop of its own, as the command has. The event loop is left out
        unless it is the fault: a slow test machine blocks it, too.
        """
        findings = await asyncio.to_thread(asyncio.run, self._findings())
        checks = CHECKS if with_event_loop else CHECKS - {"event loop"}
        return [f.check for f in findings if not f.ok and f.check in checks]

    async def _findings(self) -> list[Finding]:
        return [
            *await run_checks(load(**self.settings)),
            *await check_process(self.address, 0.5),
        ]


@asynccontextmanager
async def monitored(
    database_url: str, redis_url: str, **settings: Any
) -> AsyncIterator[Monitored]:
    """Run a service with the rate limits of the contract."""
    values = {"rate_limits": {}, "public_url": "https://academy.example", **settings}
    async with (
        running(database_url, redis_url, **values) as service,
        listening_metrics("127.0.0.1:0", service.render_metrics) as port,
    ):
        await ready(service)
        values = {"smtp_url": service.mailbox.url, **values}
        values |= {"database_url": database_url, "redis_url": redis_url}
        yield Monitored(service, f"127.0.0.1:{port}", values)


@asynccontextmanager
async def repeated(work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Repeat the work while the block runs."""

    async def repeat() -> None:
        while True:
            await work()

    task = asyncio.create_task(repeat())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def try_log_in(service: RunningService, seconds: float = 5) -> None:
    """Log in; a refusal or a failure is what the faults cause."""
    request = auth_pb2.LoginRequest(identifier="ana", password=PASSWORD)
    with suppress(grpc.aio.AioRpcError):
        await service.auth.Login(request, timeout=seconds)


async def test_no_fault_is_named_for_a_healthy_service(
    database_url: str, redis_url: str
) -> None:
    async with monitored(database_url, redis_url) as healthy:
        await healthy.scrape()
        await healthy.service.sign_up("ana")
        await healthy.service.log_in("ana")
        await healthy.scrape()
        assert (healthy.alerts(), healthy.top()) == (set(), [])
        assert await healthy.doctor() == []


async def test_lost_postgres_is_named(database_url: str, redis_url: str) -> None:
    async with (
        silent_proxy(database_url) as proxy,
        monitored(proxy.url, redis_url) as faulty,
    ):
        await faulty.scrape()
        await proxy.stop()
        await try_log_in(faulty.service)
        await faulty.scrape_until(lambda: bool(faulty.alerts()))
        assert faulty.alerts() == {"AcademyPostgresUnavailable"}
        assert faulty.top() == ["postgres"]
        assert await faulty.doctor() == ["postgres"]


async def test_lost_replica_is_named(database_url: str, redis_url: str) -> None:
    """All calls are served meanwhile."""
    url = f"postgresql://ana@{CLOSED_PORT}/academy"
    settings = {"database_read_url": url}
    async with monitored(database_url, redis_url, **settings) as faulty:
        await faulty.scrape()
        await faulty.service.signed_in()
        await faulty.scrape_until(lambda: bool(faulty.alerts()))
        assert faulty.alerts() == {"AcademyReplicaUnavailable"}
        assert faulty.top() == ["replica"]
        assert await faulty.doctor() == ["replica"]


async def test_lost_redis_is_named(database_url: str) -> None:
    async with monitored(database_url, f"redis://{CLOSED_PORT}") as faulty:
        await faulty.scrape()
        await try_log_in(faulty.service)
        await faulty.scrape_until(lambda: bool(faulty.alerts()))
        assert faulty.alerts() == {"AcademyRedisUnavailable"}
        assert faulty.top() == ["redis"]
        assert await faulty.doctor() == ["redis"]


async def test_mail_server_that_refuses_connections_is_named(
    database_url: str, redis_url: str
) -> None:
    url = f"smtp://{CLOSED_PORT}"
    async with monitored(database_url, redis_url, smtp_url=url) as faulty:
        await faulty.scrape()
        await faulty.service.sign_up()
        await faulty.scrape_until(lambda: bool(faulty.alerts()))
        assert faulty.alerts() == {"AcademyMailServerUnavailable"}
        assert faulty.top() == ["smtp"]
        assert await faulty.doctor() == ["mail"]


async def test_overloaded_hashing_pool_is_named(
    database_url: str, redis_url: str
) -> None:
    no_limits: dict[str, list[object]] = {"blatam.auth.v1.AuthService/Login": []}
    async with monitored(database_url, redis_url, rate_limits=no_limits) as faulty:
        await faulty.service.sign_up("ana")
        await faulty.service.log_in("ana")

        async def flood() -> None:
            """Send more log-ins than can be verified in half a second."""
            calls = (try_log_in(faulty.service, 0.5) for _ in range(60))
            await asyncio.gather(*calls)

        await faulty.scrape()
        async with repeated(flood):
            await faulty.scrape_until(lambda: bool(faulty.alerts()))
            assert "hashing" in await faulty.doctor()
        assert faulty.alerts() == {"AcademyHashingOverloaded"}
        assert faulty.top() == ["hashing"]


async def test_blocked_event_loop_is_named(database_url: str, redis_url: str) -> None:
    async with monitored(database_url, redis_url) as faulty:
        faulty.loop_is_measured = True

        async def block() -> None:
            time.sleep(0.4)  # noqa: ASYNC251 - the fault
            await asyncio.sleep(0.05)

        await faulty.scrape()
        async with repeated(block):
            await asyncio.sleep(2)
            await faulty.scrape()
            assert await faulty.doctor(with_event_loop=True) == ["event loop"]
        assert faulty.alerts() == {"AcademyEventLoopBlocked"}
        assert faulty.top() == ["event loop"]
