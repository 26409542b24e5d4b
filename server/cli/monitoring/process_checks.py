"""Checks of the running server, from its metrics listener."""

from __future__ import annotations

import asyncio

from server.cli.monitoring.faults import faults
from server.cli.monitoring.findings import Finding
from server.cli.monitoring.samples import Interval
from server.cli.monitoring.scraping import MetricsTimeout, NoMetrics, scrape

INTERVAL_SECONDS = 2.0
CHECKS = ("hashing", "event loop")
WORKERS = "academy_workers"  # with several workers only


async def check_process(
    address: str, interval_seconds: float = INTERVAL_SECONDS
) -> list[Finding]:
    """Check the hashing pool and the event loop for two seconds."""
    if not address:
        result = "METRICS_LISTEN is not set: hashing and event loop are not checked"
        advice = "set METRICS_LISTEN=127.0.0.1:9464 for the server and this command"
        return [Finding("metrics", True, result, advice)]
    try:
        earlier = await asyncio.to_thread(scrape, address)
        await asyncio.sleep(interval_seconds)
        later = await asyncio.to_thread(scrape, address)
    except MetricsTimeout as error:
        advice = (
            "check the CPU usage of the server; if this continues, restart the server"
        )
        return [Finding("event loop", False, str(error), advice)]
    except NoMetrics as error:
        advice = "start the server with METRICS_LISTEN, or correct METRICS_LISTEN"
        return [Finding("metrics", False, str(error), advice)]
    interval = Interval(earlier, later)
    checks = CHECKS if interval.gauge(WORKERS) is None else (*CHECKS, "workers")
    return [_finding(check, interval) for check in checks]


def _finding(check: str, interval: Interval) -> Finding:
    for fault in faults(interval):
        if fault.component == check:
            return Finding(check, False, fault.problem, fault.advice)
    return Finding(check, True, f"no fault in {interval.seconds:.0f} s")
