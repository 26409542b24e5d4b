"""Coroutines that run to where they first wait, and what happens from there on."""

import asyncio

import pytest

from edge.stepping import Waiting, start


async def test_coroutine_that_never_waits_returns_its_result_at_once() -> None:
    async def add(number: int) -> int:
        return number + 1

    assert start(add(1)) == 2


async def test_error_before_the_first_wait_is_raised_at_once() -> None:
    async def fail() -> None:
        raise ValueError("at once")

    with pytest.raises(ValueError, match="at once"):
        start(fail())


async def test_waiting_coroutine_continues_where_it_waited() -> None:
    """Through several waits, with the values and errors that they end with."""
    loop = asyncio.get_running_loop()
    first, second = loop.create_future(), loop.create_future()

    async def collect() -> list[object]:
        values: list[object] = [await first]
        try:
            await second
        except OSError as error:
            values.append(str(error))
        await asyncio.sleep(0)
        return [*values, asyncio.current_task()]

    running = start(collect())
    assert isinstance(running, Waiting)
    loop.call_soon(first.set_result, "one")
    loop.call_soon(second.set_exception, OSError("two"))
    assert await running == ["one", "two", asyncio.current_task()]


@pytest.mark.parametrize("survives", [False, True])
async def test_cancellation_reaches_the_coroutine(survives: bool) -> None:
    """It cleans up; it may also end normally, as a coroutine that is awaited may."""
    loop = asyncio.get_running_loop()
    blocked, cleaned = loop.create_future(), []

    async def wait() -> str:
        try:
            await blocked
        except asyncio.CancelledError:
            if not survives:
                raise
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)
        return "survived"

    async def run() -> str:
        running = start(wait())
        assert isinstance(running, Waiting)
        return await running

    task = asyncio.ensure_future(run())
    await asyncio.sleep(0)
    task.cancel()
    outcome = (await asyncio.gather(task, return_exceptions=True))[0]
    assert cleaned == [True]
    assert (outcome == "survived") is survives
    assert isinstance(outcome, asyncio.CancelledError) is not survives


async def test_timeout_around_the_rest_ends_it() -> None:
    running = start(asyncio.sleep(60))
    assert isinstance(running, Waiting)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await running
