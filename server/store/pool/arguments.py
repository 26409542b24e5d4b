"""The arguments with which asyncpg connects, directly or through SQLAlchemy."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from server.store.connections.database_url import DatabaseUrl

CONNECT_TIMEOUT_SECONDS = 5.0
# A caller waits for a connection, then for a lock: both together end within 1 s.
LOCK_TIMEOUT = timedelta(seconds=0.45)
CONNECTION_CHECK_INTERVAL = timedelta(milliseconds=100)
# Postgres enforces a timeout first: then the connection is not lost.
TIMEOUT_MARGIN = timedelta(seconds=0.5)


@dataclass(frozen=True, slots=True)
class ConnectArguments:
    """What connections need to know, with or without timeouts of statements."""

    url: DatabaseUrl
    transaction_pooler: bool
    statement_timeout: timedelta

    def direct(self) -> dict[str, Any]:
        """Return the arguments of a connection whose statements may take long."""
        arguments = {
            "timeout": CONNECT_TIMEOUT_SECONDS,
            **self.url.connect_arguments,
            "server_settings": {"application_name": self.url.application_name},
        }
        if self.transaction_pooler:
            arguments["statement_cache_size"] = 0
        return arguments

    def unlimited(self) -> dict[str, Any]:
        """Return the same for SQLAlchemy."""
        arguments = self.direct()
        if self.transaction_pooler:
            arguments["prepared_statement_cache_size"] = 0
            # an unnamed statement, which asyncpg parses again with each execution
            arguments["prepared_statement_name_func"] = lambda: ""
        return arguments

    def limited(self) -> dict[str, Any]:
        """Return the same with timeouts, for the pool."""
        arguments = self.unlimited()
        limit = self.statement_timeout + TIMEOUT_MARGIN
        arguments["command_timeout"] = limit.total_seconds()
        if not self.transaction_pooler:
            arguments["server_settings"] |= self._timeouts()
        return arguments

    def _timeouts(self) -> dict[str, str]:
        timeouts = {
            # A cancel request that arrives between two statements has no effect; the
            # statement then ends when Postgres sees that the connection is closed.
            "client_connection_check_interval": CONNECTION_CHECK_INTERVAL,
            "lock_timeout": min(LOCK_TIMEOUT, self.statement_timeout),
            "statement_timeout": self.statement_timeout,
        }
        milliseconds = timedelta(milliseconds=1)
        return {name: f"{t / milliseconds:.0f}" for name, t in timeouts.items()}

    def set_local_timeouts(self) -> sa.TextClause:
        """Return a statement that sets the timeouts of one transaction only.

        A pooler gives the session to others afterwards.
        """
        values = ", ".join(
            f"set_config('{name}', '{value}', true)"
            for name, value in self._timeouts().items()
        )
        return sa.text(f"select {values}")
