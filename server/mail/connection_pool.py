"""SmtpConnections: kept connections to a mail server, as many as it accepts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiosmtplib import SMTP, SMTPException

from server.domain.outbox.emails import MailerBusy, MailerUnavailable

MAX_CONNECTIONS = 16
MAX_MAILS_PER_CONNECTION = 100  # after some hundreds many servers disconnect
MAX_IDLE_SECONDS = 30.0
MAX_WAIT_SECONDS = 10.0
LIMIT_SECONDS = 60.0  # until one more connection is tried than the server accepted
_FAULTS = (SMTPException, OSError, TimeoutError)


@dataclass(slots=True)
class Connection:
    """An open connection; `used_at` is by the clock of the event loop."""

    smtp: SMTP
    used_at: float
    mails: int = 0


class SmtpConnections:
    """Opens a connection when all others are in use, one after the other.

    A server that refuses a further connection is used with those that it accepted. A
    connection that was idle for `check_after` seconds is checked before it
    is used.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[SMTP]],
        check_after: float,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        """`connect` raises MailerUnavailable."""
        self._connect = connect
        self._check_after = check_after
        self._max_connections = self._limit = max_connections
        self._idle: list[Connection] = []
        self._in_use = 0
        self._is_connecting = False
        self._failures = 0
        self._failure = ""
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[SMTP]:
        """Yield a connection, which is closed if the block raises.

        Raises MailerUnavailable, MailerBusy.
        """
        connection = await self._take()
        try:
            yield connection.smtp
        except BaseException:
            connection.smtp.close()  # the dialogue is in an unknown state
            raise
        finally:
            await self._put_back(connection)

    async def close(self) -> None:
        """Close the connections that are not in use."""
        idle, self._idle = self._idle, []
        await asyncio.gather(*(_quit(connection.smtp) for connection in idle))

    async def _take(self) -> Connection:
        """Return an idle connection, or else a new one."""
        while connection := await self._idle_connection():
            if await self._is_open(connection):
                return connection
        try:
            return Connection(await self._connect(), _now())
        except BaseException as error:
            self._in_use -= 1
            if isinstance(error, MailerUnavailable):
                self._record_failure(error)
            raise
        finally:
            self._is_connecting = False
            async with self._changed:
                self._changed.notify_all()

    def _record_failure(self, error: MailerUnavailable) -> None:
        """Raise MailerBusy if the server has accepted others, which are in use."""
        if self._in_use:
            self._limit_connections(self._in_use)
            raise MailerBusy from error
        self._limit = self._max_connections
        self._failures, self._failure = self._failures + 1, str(error)

    async def _idle_connection(self) -> Connection | None:
        """Wait for an idle connection; return None when a new one may be opened.

        Raises MailerBusy; and MailerUnavailable if a connection failed meanwhile.
        """
        failures = self._failures
        try:
            async with asyncio.timeout(MAX_WAIT_SECONDS), self._changed:
                await self._changed.wait_for(
                    lambda: (
                        self._idle or self._may_connect() or self._failures > failures
                    )
                )
                if self._failures > failures:
                    raise MailerUnavailable(self._failure)
                self._in_use += 1
                if self._idle:
                    return self._idle.pop()
                self._is_connecting = True
                return None
        except TimeoutError:
            raise MailerBusy from None

    def _may_connect(self) -> bool:
        return self._in_use < self._limit and not self._is_connecting

    def _limit_connections(self, limit: int) -> None:
        """Open no more connections for some time."""

        def lift() -> None:
            self._limit = self._max_connections

        self._limit = limit
        asyncio.get_running_loop().call_later(LIMIT_SECONDS, lift)

    async def _put_back(self, connection: Connection) -> None:
        connection.mails += 1
        connection.used_at = _now()
        if connection.mails >= MAX_MAILS_PER_CONNECTION:
            await _quit(connection.smtp)
        self._in_use -= 1
        if connection.smtp.is_connected:
            self._idle.append(connection)
            asyncio.get_running_loop().call_later(MAX_IDLE_SECONDS, self._close_idle)
        async with self._changed:
            self._changed.notify()

    def _close_idle(self) -> None:
        """Close connections that were not used for some time."""
        oldest = _now() - MAX_IDLE_SECONDS
        for connection in [c for c in self._idle if c.used_at <= oldest]:
            self._idle.remove(connection)
            connection.smtp.close()

    async def _is_open(self, connection: Connection) -> bool:
        """Return whether a connection can be used; otherwise it has lost its place."""
        smtp = connection.smtp
        try:
            if smtp.is_connected and _now() - connection.used_at >= self._check_after:
                await smtp.noop()
        except _FAULTS:
            smtp.close()
        except BaseException:
            smtp.close()
            raise
        finally:
            if not smtp.is_connected:
                self._in_use -= 1
        return bool(smtp.is_connected)


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _quit(smtp: SMTP) -> None:
    if smtp.is_connected:
        try:
            async with asyncio.timeout(1):
                await smtp.quit()
        except _FAULTS:
            smtp.close()
