"""Overviews: what fails or takes too long is missing, and nothing runs on."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from time import perf_counter
from typing import Any

import pytest

from server.domain.accounts.users import Role, User
from server.domain.errors import StoreUnavailable, UserNotFound
from server.domain.members.overviews import Overviews, Part
from server.domain.paging import Rows
from tests.fakes import NOON

ANA = User(1, "ana@example.com", "ana", Role.STUDENT, True, False, NOON, NOON, 1)
NOTHING: Rows[Any] = Rows([], False, 0, False)
Work = Callable[[], Awaitable[Any]]


async def ana() -> User:
    return ANA


async def nothing() -> Rows[Any]:
    return NOTHING


async def outage() -> Any:
    raise StoreUnavailable


@dataclass
class Slow:
    """Answers far too late; knows whether it was told to stop."""

    stopped: bool = False

    async def __call__(self) -> Any:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.stopped = True
            raise


@dataclass
class Stores:
    """Does what each test wants, in place of every store."""

    user: Work = ana
    rows: Work = nothing
    followers: Work = nothing

    async def by_id(self, user_id: int) -> User | None:
        found: User | None = await self.user()
        return found

    async def page(self, *place: Any, **_: Any) -> Rows[Any]:
        is_posts = len(place) == 4
        rows: Rows[Any] = await (self.rows if is_posts else self.followers)()
        return rows


def overviews(seconds: float = 0.05, /, **works: Work) -> Overviews:
    stores: Any = Stores(**works)
    return Overviews(stores, stores, stores, timedelta(seconds=seconds))


async def test_overview_has_all_parts() -> None:
    found = await overviews().get(1, None)
    assert (found.user, found.posts, found.followers) == (ANA, NOTHING, NOTHING)
    assert not found.missing


@pytest.mark.parametrize(
    ("works", "part"),
    [
        ({"user": outage}, Part.USER),
        ({"rows": outage}, Part.POSTS),
        ({"followers": outage}, Part.FOLLOWERS),
        ({"rows": Slow()}, Part.POSTS),
    ],
)
async def test_overview_reports_failed_parts_as_missing(
    works: dict[str, Work], part: Part
) -> None:
    """The rest is there."""
    found = await overviews(**works).get(1, None)
    assert set(found.missing) == {part}
    there = {Part.USER: found.user, Part.POSTS: found.posts,
             Part.FOLLOWERS: found.followers}  # fmt: skip
    assert {p for p, value in there.items() if value is None} == {part}


async def test_overview_reads_its_parts_concurrently() -> None:
    """All take as long as one; each waits until all have begun."""
    begun = asyncio.Barrier(3)

    async def waits_for_the_others() -> Any:
        await begun.wait()
        return NOTHING

    works = dict.fromkeys(("user", "rows", "followers"), waits_for_the_others)
    found = await overviews(5, **works).get(1, None)
    assert not found.missing


async def test_overview_shares_one_deadline_between_parts() -> None:
    """One deadline: two slow parts do not take twice as long, and are stopped."""
    slow, slower = Slow(), Slow()
    began = perf_counter()
    found = await overviews(60, rows=slow, followers=slower).get(1, 0.1)
    assert perf_counter() - began < 1
    assert set(found.missing) == {Part.POSTS, Part.FOLLOWERS}
    assert slow.stopped
    assert slower.stopped


async def test_overview_cancels_its_reads_with_the_call() -> None:
    slow = Slow()
    call = asyncio.create_task(overviews(60, rows=slow).get(1, None))
    await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert slow.stopped


async def test_overview_fails_for_unknown_users_and_without_parts() -> None:
    """An account that there is not is told; so is it when nothing can be read."""

    async def nobody() -> None:
        return None

    with pytest.raises(UserNotFound):
        await overviews(user=nobody, rows=outage).get(1, None)
    with pytest.raises(StoreUnavailable):
        await overviews(user=outage, rows=outage, followers=outage).get(1, None)
