"""Captures statements where asyncpg sends them, and reads their query plans."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import asyncpg.protocol

from server.store.connections.connect import Database

# Tables with a row for each account, session, post, event or the like.
LARGE_TABLES = frozenset(
    {
        "audit_events",
        "challenges",
        "factors",
        "follows",
        "identities",
        "mailed_tokens",
        "notifications",
        "outbox",
        "posts",
        "recovery_codes",
        "request_answers",
        "revocations",
        "sessions",
        "user_analytics",
        "user_profiles",
        "user_settings",
        "users",
    }
)
# Rows that a statement may read to find those it wants; lists count to 10,001.
MAX_READ = 11_000
_PLANNED = ("select", "update", "delete", "insert", "with")
_SCANS = ("Seq Scan", "Index Scan", "Index Only Scan")
# Nodes that pass rows on as they get them.
_STREAMING = (
    "Append",
    "Incremental Sort",
    "LockRows",
    "Merge Append",
    "Nested Loop",
    "Result",
    "Subquery Scan",
)
# The number of rows by the names of these tables and of their indexes. A partial index
# is left out: it contains what its readers want.
_SIZES = """
    select relname, reltuples::float8 from pg_class where relname = any($1)
    union all
    select index.relname, of_table.reltuples::float8
    from pg_index
    join pg_class index on index.oid = indexrelid
    join pg_class of_table on of_table.oid = indrelid
    where of_table.relname = any($1) and indpred is null
"""
_captured: list[list["Statement"]] = []


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement as it was sent, with its parameters."""

    text: str
    parameters: tuple[Any, ...]


@contextmanager
def capturing_connections() -> Iterator[None]:
    """Let connections that are made in this block capture what they send."""
    with patch.object(asyncpg.protocol, "Protocol", _CapturingProtocol):
        yield


@contextmanager
def captured() -> Iterator[list[Statement]]:
    """Return a list to which each statement is added, of all tasks."""
    statements: list[Statement] = []
    _captured.append(statements)
    try:
        yield statements
    finally:
        _captured.remove(statements)


class _CapturingProtocol(asyncpg.protocol.Protocol):  # type: ignore[misc]
    async def bind_execute(
        self, state: Any, args: Any, *rest: Any, **named: Any
    ) -> Any:
        for statements in _captured:
            statements.append(Statement(state.query, tuple(args)))
        return await super().bind_execute(state, args, *rest, **named)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a statement reads: the indexes, and large tables without a bound."""

    indexes: frozenset[str]
    scanned: frozenset[str]


async def plan_of(database: Database, statement: Statement) -> Plan | None:
    """Return the plan of a statement; None if it has none, such as SET."""
    text = statement.text.strip()
    if not text.lower().startswith(_PLANNED):
        return None
    async with database.reading() as connection:
        raw: Any = await connection.get_raw_connection()
        driver = raw.driver_connection
        # as on disks without moving parts; otherwise the planner prefers to read whole
        # tables while they are as small as those of a test
        await driver.execute("set random_page_cost = 1.1")
        explained = await driver.fetchval(
            f"explain (format json) {text}", *statement.parameters
        )
        sizes = dict(await driver.fetch(_SIZES, sorted(LARGE_TABLES)))
    plan = json.loads(explained) if isinstance(explained, str | bytes) else explained
    nodes = list(_nodes(plan[0]["Plan"], None))
    return Plan(
        frozenset(node["Index Name"] for node, _ in nodes if "Index Name" in node),
        frozenset(
            node["Relation Name"]
            for node, limit in nodes
            if _is_search(node, limit, sizes)
        ),
    )


def _nodes(
    node: dict[str, Any], limit: int | None
) -> Iterator[tuple[dict[str, Any], int | None]]:
    """Yield nodes with the number of rows after which they are stopped, or None."""
    yield node, limit
    if node["Node Type"] == "Limit":
        limit = node["Plan Rows"]
    elif node["Node Type"] not in _STREAMING:
        limit = None
    for inner in node.get("Plans", ()):
        yield from _nodes(inner, limit)


def _is_search(
    node: dict[str, Any], limit: int | None, sizes: Mapping[str, float]
) -> bool:
    """Return whether a node reads a large table or index from its beginning to its end.

    Below a limit it does not, if it is expected to have found enough rows before.
    """
    if node["Node Type"] not in _SCANS or "Index Cond" in node:
        return False
    size = sizes.get(node.get("Index Name", node["Relation Name"]))
    if size is None:
        return False
    return limit is None or limit * size > MAX_READ * node["Plan Rows"]


def indexes_of(plans: Sequence[Plan]) -> frozenset[str]:
    """Return the indexes of all plans."""
    return frozenset().union(*(plan.indexes for plan in plans))
