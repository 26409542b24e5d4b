"""The check of DATABASE_READ_URL: whether it is a replica, and how far behind it is."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from time import monotonic

from server.cli.database import open_replica
from server.cli.monitoring.findings import Finding
from server.config import Settings, text_of
from server.domain.errors import StoreUnavailable
from server.store.connections.connect import Database
from server.store.connections.database_url import parse_database_url
from server.store.connections.faults import DATABASE_ERRORS, describe_fault
from server.store.replica.position import ServerPosition, mismatch, position_of
from server.store.replica.privileges import unreadable_tables

TIMEOUT_SECONDS = 5.0
OBSERVED_SECONDS = (
    1.0  # in which a replica that is not behind replays the newest change
)
POLL_SECONDS = 0.05
_MAX_NAMES = 3
_ERRORS = (StoreUnavailable, *DATABASE_ERRORS, OSError, TimeoutError)
_MISMATCH_ADVICE = (
    "set DATABASE_READ_URL to a streaming replica of DATABASE_URL; until then, the "
    "primary is read"
)
_LAG_ADVICE = (
    "look for long queries and a slow disk or network of the replica; until then, the "
    "primary is read"
)


async def check_replica(settings: Settings, primary: Database) -> list[Finding]:
    """Compare the replica, if there is one, with the primary."""
    if settings.database_read_url is None:
        return []
    url = parse_database_url(text_of(settings.database_read_url)).displayed
    replica = open_replica(settings)
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            finding = await _compared(primary, replica, settings.database_read_max_lag)
    except _ERRORS as error:
        fault = describe_fault(error.__cause__ or error, replica.role)
        advice = fault.replace("DATABASE_URL", "DATABASE_READ_URL")
        finding = Finding("replica", False, "no connection", advice)
    finally:
        await replica.close()
    return [
        Finding(finding.check, finding.ok, f"{url}: {finding.result}", finding.advice)
    ]


async def _compared(
    primary: Database, replica: Database, max_lag: timedelta
) -> Finding:
    position = await position_of(replica)
    newest = await position_of(primary)
    if fault := mismatch(newest, position):
        return Finding("replica", False, fault, _MISMATCH_ADVICE)
    if tables := await unreadable_tables(replica):
        return _unreadable(tables, replica.role)
    if not position.is_standby:
        return Finding("replica", True, "responds; it is the primary itself")
    started_at = monotonic()
    while position.bytes < newest.bytes:
        if monotonic() - started_at > OBSERVED_SECONDS:
            return _behind(newest, position, max_lag)
        await asyncio.sleep(POLL_SECONDS)
        position = await position_of(replica)
    lag = monotonic() - started_at
    return Finding("replica", True, f"responds, lags by {lag:.1f} s")


def _unreadable(tables: Sequence[str], role: str) -> Finding:
    shown = ", ".join(tables[:_MAX_NAMES]) + (" ..." if tables[_MAX_NAMES:] else "")
    account = f'"{role}"' if role else "<role>"
    advice = (
        "as the owner of the tables, run at the primary: GRANT SELECT ON ALL TABLES IN "
        f"SCHEMA public TO {account}; until then, the primary is read"
    )
    return Finding("replica", False, f"permission denied to read {shown}", advice)


def _behind(
    newest: ServerPosition, position: ServerPosition, max_lag: timedelta
) -> Finding:
    """Return the finding for a replica that has not replayed the newest change."""
    missing = newest.bytes - position.bytes
    if position.age is None:
        result = f"has replayed no commit since its start, {missing} bytes are missing"
        return Finding("replica", False, result, _LAG_ADVICE)
    result = (
        f"lags by {position.age.total_seconds():.1f} s, {missing} bytes are missing"
    )
    if position.age <= max_lag:
        return Finding("replica", True, result)
    limit = f"more than DATABASE_READ_MAX_LAG ({max_lag.total_seconds():g} s)"
    return Finding("replica", False, f"{result}: {limit}", _LAG_ADVICE)
