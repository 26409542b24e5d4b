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
        "follows",
        "mailed_tokens",
        "notifications",
        "outbox",
        "posts",
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
        # as on disks without moving parts; otherwise the planner prefers to read whole
        # tables while they are as small as those of a test
        await raw.driver_connection.execute("set random_page_cost = 1.1")
        explained = await raw.driver_connection.fetchval(
            f"explain (format json) {text}", *statement.parameters
        )
        sizes = await raw.driver_connection.fetch(
            "select relname, reltuples from pg_class where relname = any($1)",
            sorted(LARGE_TABLES),
        )
    plan = json.loads(explained) if isinstance(explained, str | bytes) else explained
    rows = dict(sizes)
    nodes = list(_nodes(plan[0]["Plan"], None))
    return Plan(
        frozenset(n["Index Name"] for n, _ in nodes if "Index Name" in n),
        frozenset(n["Relation Name"] for n, top in nodes if _is_scan(n, top, rows)),
    )


def _nodes(
    node: dict[str, Any], parent: dict[str, Any] | None
) -> Iterator[tuple[dict[str, Any], dict[str, Any] | None]]:
    yield node, parent
    for inner in node.get("Plans", ()):
        yield from _nodes(inner, node)


def _is_scan(
    node: dict[str, Any], parent: dict[str, Any] | None, rows: Mapping[str, float]
) -> bool:
    """Return whether a node reads a large table, or its index, until it finds its rows.

    Below a limit it is bounded if it finds enough rows in a number that does not grow.
    """
    if not node["Node Type"].endswith("Scan") or "Index Cond" in node:
        return False
    if node.get("Relation Name") not in rows or node["Node Type"] == "Bitmap Heap Scan":
        return False
    if parent is None or parent["Node Type"] not in ("Limit", "LockRows"):
        return "Filter" in node or "Seq" in node["Node Type"]
    share = node["Plan Rows"] / rows[node["Relation Name"]]
    return bool(parent["Plan Rows"] > MAX_READ * share)


def indexes_of(plans: Sequence[Plan]) -> frozenset[str]:
    """Return the indexes of all plans."""
    return frozenset().union(*(plan.indexes for plan in plans))
