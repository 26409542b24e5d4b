"""Overviews: failed and late parts are missing, and no read outlives the call."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from time import perf_counter
from typing import Any

import pytest

from server.domain.accounts.users import Role, User
from server.domain.errors import StoreUnavailable, UserNotFound
from server.domain.members.overviews import OverviewPart, Overviews
from server.domain.paging import Rows
from tests.fakes import NOON

ANA = User(1, "ana@example.com", "ana", Role.STUDENT, True, False, NOON, NOON, 1)
NOTHING: Rows[Any] = Rows([], False, 0, False)
Read = Callable[[], Awaitable[Any]]


async def ana() -> User:
    return ANA


async def nothing() -> Rows[Any]:
    return NOTHING


async def outage() -> Any:
    raise StoreUnavailable


@dataclass
class Slow:
    """Returns far too late, and records its cancellation."""

    stopped: bool = False

    async def __call__(self) -> Any:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.stopped = True
            raise


@dataclass
class OverviewStores:
    """Every store in one, with the reads of each test."""

    user: Read = ana
    rows: Read = nothing
    followers: Read = nothing

    async def by_id(self, user_id: int) -> User | None:
        user: User | None = await self.user()
        return user

    async def page(self, *place: Any, **_: Any) -> Rows[Any]:
        is_posts = len(place) == 4
        rows: Rows[Any] = await (self.rows if is_posts else self.followers)()
        return rows


def overviews(seconds: float = 0.05, /, **reads: Read) -> Overviews:
    stores: Any = OverviewStores(**reads)
    return Overviews(stores, stores, stores, timedelta(seconds=seconds))


async def test_overview_has_all_parts() -> None:
    overview = await overviews().get(1, None)
    assert (overview.user, overview.posts, overview.followers) == (
        ANA,
        NOTHING,
        NOTHING,
    )
    assert not overview.missing


@pytest.mark.parametrize(
    ("reads", "part"),
    [
        ({"user": outage}, OverviewPart.USER),
        ({"rows": outage}, OverviewPart.POSTS),
        ({"followers": outage}, OverviewPart.FOLLOWERS),
        ({"rows": Slow()}, OverviewPart.POSTS),
    ],
)
async def test_overview_reports_failed_parts_as_missing(
    reads: dict[str, Read], part: OverviewPart
) -> None:
    """The other parts are returned."""
    overview = await overviews(**reads).get(1, None)
    assert set(overview.missing) == {part}
    values = {OverviewPart.USER: overview.user, OverviewPart.POSTS: overview.posts,
             OverviewPart.FOLLOWERS: overview.followers}  # fmt: skip
    assert {p for p, value in values.items() if value is None} == {part}


async def test_overview_reads_its_parts_concurrently() -> None:
    """Each read waits until all three have begun."""
    begun = asyncio.Barrier(3)

    async def waits_for_the_others() -> Any:
        await begun.wait()
        return NOTHING

    reads = dict.fromkeys(("user", "rows", "followers"), waits_for_the_others)
    overview = await overviews(5, **reads).get(1, None)
    assert not overview.missing


async def test_overview_shares_one_deadline_between_parts() -> None:
    """Two slow parts do not take twice as long, and both are cancelled."""
    slow, slower = Slow(), Slow()
    began = perf_counter()
    overview = await overviews(60, rows=slow, followers=slower).get(1, 0.1)
    assert perf_counter() - began < 1
    assert set(overview.missing) == {OverviewPart.POSTS, OverviewPart.FOLLOWERS}
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
    """NOT_FOUND for an unknown account, UNAVAILABLE if no part can be read."""

    async def no_user() -> None:
        return None

    with pytest.raises(UserNotFound):
        await overviews(user=no_user, rows=outage).get(1, None)
    with pytest.raises(StoreUnavailable):
        await overviews(user=outage, rows=outage, followers=outage).get(1, None)
