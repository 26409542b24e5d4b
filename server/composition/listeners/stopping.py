"""Listeners that stop together, and the signals that stop them."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import TypeVar

import structlog

log = structlog.get_logger()
CHECK_INTERVAL_SECONDS = 1.0
First = TypeVar("First")
Second = TypeVar("Second")


@asynccontextmanager
async def stopping_together(
    first: AbstractAsyncContextManager[First],
    second: AbstractAsyncContextManager[Second],
) -> AsyncIterator[tuple[First, Second]]:
    """Enter both in order; leave both at the same time, so that one timeout bounds it.

    Listeners that stop one after the other would take twice the time for slow calls,
    and the second would accept calls while the first refuses them.
    """
    entered = await first.__aenter__()
    try:
        values = entered, await second.__aenter__()
    except BaseException:
        await first.__aexit__(*sys.exc_info())
        raise
    try:
        yield values
    finally:
        ended = sys.exc_info()
        await asyncio.gather(first.__aexit__(*ended), second.__aexit__(*ended))


async def until_stopped(
    check: Callable[[], None] | None = None,
    stopped: asyncio.Event | None = None,
    *,
    supervised: bool = False,
) -> None:
    """Wait for SIGTERM, SIGINT or `stopped`; a signal after that ends the process.

    A `supervised` process ignores it: a process manager signals every process of a
    service, and then so does the supervisor, which ends a process that hangs.
    `check` is called every second; an exception it raises ends the wait.
    """
    loop = asyncio.get_running_loop()
    stopped = stopped or asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    while not stopped.is_set():
        if check:
            check()
        with suppress(TimeoutError):
            async with asyncio.timeout(CHECK_INTERVAL_SECONDS):
                await stopped.wait()
    for number in (signal.SIGTERM, signal.SIGINT):
        if supervised:
            loop.add_signal_handler(number, lambda: None)
        else:
            loop.remove_signal_handler(number)
    log.info("stopping")
