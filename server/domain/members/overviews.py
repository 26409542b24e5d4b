"""Overviews: an account, its newest posts and its newest followers, read concurrently.

A part that fails or takes too long is reported as missing; the others are returned.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Any

from server.domain.accounts.users import User
from server.domain.errors import StoreUnavailable, UserNotFound
from server.domain.members.follows import AccountReader, Follow, FollowStore, Side
from server.domain.paging import PageRequest, Rows, Sort
from server.domain.posts.posts import Post, PostFilter, PostState, PostStore, Reader

NEWEST_COUNT = 5  # posts, and followers
READ_TIMEOUT = timedelta(seconds=2)
USABLE_FRACTION = 0.8  # of the caller's deadline; the rest is for the response
_ANYONE = Reader(0, sees_all=False)


class OverviewPart(Enum):
    """A part of an overview."""

    USER = "user"
    POSTS = "posts"
    FOLLOWERS = "followers"


@dataclass(frozen=True, slots=True)
class Overview:
    """The parts that could be read in time, and the errors of the others."""

    user: User | None
    posts: Rows[Post] | None
    followers: Rows[Follow] | None
    missing: Mapping[OverviewPart, BaseException]


@dataclass(frozen=True, slots=True)
class Overviews:
    """Reads overviews."""

    accounts: AccountReader
    posts: PostStore
    follows: FollowStore
    timeout: timedelta = READ_TIMEOUT

    async def get(self, user_id: int, seconds_left: float | None) -> Overview:
        """Return an account's overview; `seconds_left` is the caller's deadline.

        Raises UserNotFound, and StoreUnavailable if no part can be read.
        """
        timeout = self.timeout.total_seconds()
        if seconds_left is not None:
            timeout = min(timeout, seconds_left * USABLE_FRACTION)
        parts, missing = await _read_concurrently(self._reads(user_id), timeout)
        if OverviewPart.USER in parts and parts[OverviewPart.USER] is None:
            raise UserNotFound(user_id)
        if not parts:
            raise StoreUnavailable from missing[OverviewPart.USER]
        return Overview(
            parts.get(OverviewPart.USER),
            parts.get(OverviewPart.POSTS),
            parts.get(OverviewPart.FOLLOWERS),
            missing,
        )

    def _reads(self, user_id: int) -> dict[OverviewPart, Coroutine[Any, Any, Any]]:
        first_page = PageRequest(NEWEST_COUNT, allows_stale=True)
        published = PostFilter(author_id=user_id, state=PostState.PUBLISHED)
        return {
            OverviewPart.USER: self.accounts.by_id(user_id),
            OverviewPart.POSTS: self.posts.page(
                published, _ANYONE, Sort("published_at", descending=True), first_page
            ),
            OverviewPart.FOLLOWERS: self.follows.page(
                Side.FOLLOWERS, user_id, newest_first=True, request=first_page
            ),
        }


async def _read_concurrently(
    reads: Mapping[OverviewPart, Coroutine[Any, Any, Any]],
    timeout: float,  # noqa: ASYNC109 - seconds; a part that is late is missing, no error
) -> tuple[dict[OverviewPart, Any], dict[OverviewPart, BaseException]]:
    """Return the results of the parts read in time, and the errors of the others.

    No read outlives the call, not even if the call is cancelled.
    """
    tasks = {part: asyncio.create_task(read) for part, read in reads.items()}
    try:
        await asyncio.wait(tasks.values(), timeout=timeout)
    finally:
        for task in tasks.values():
            task.cancel()
        results = await asyncio.gather(*tasks.values(), return_exceptions=True)
    outcomes = dict(zip(tasks, results, strict=True))
    missing = {p: o for p, o in outcomes.items() if isinstance(o, BaseException)}
    return {p: o for p, o in outcomes.items() if p not in missing}, missing
