"""Overviews: an account, its newest posts and followers, read at once.

A part that fails or takes too long is missing; the rest is there all the same.
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
from server.domain.members.follows import Accounts, Follow, FollowStore, Side
from server.domain.paging import PageRequest, Rows, Sort
from server.domain.posts.posts import Post, PostFilter, PostStore, Reader, State

NEWEST = 5
WITHIN = timedelta(seconds=2)
KEPT_BACK = 0.8  # of the caller's time; the rest is for answering
_NOBODY = Reader(0, sees_all=False)


class Part(Enum):
    """A part of an overview."""

    USER = "user"
    POSTS = "posts"
    FOLLOWERS = "followers"


@dataclass(frozen=True, slots=True)
class Overview:
    """What could be read in time, and why the rest could not."""

    user: User | None
    posts: Rows[Post] | None
    followers: Rows[Follow] | None
    missing: Mapping[Part, BaseException]


@dataclass(frozen=True, slots=True)
class Overviews:
    """Reads overviews."""

    accounts: Accounts
    posts: PostStore
    follows: FollowStore
    within: timedelta = WITHIN

    async def of(self, user_id: int, seconds_left: float | None) -> Overview:
        """Give an account's overview, within `seconds_left` of the caller's time.

        Raises UserNotFound, and StoreUnavailable if no part can be read.
        """
        within = self.within.total_seconds()
        if seconds_left is not None:
            within = min(within, seconds_left * KEPT_BACK)
        read, missing = await _together(self._parts(user_id), within)
        if Part.USER in read and read[Part.USER] is None:
            raise UserNotFound(user_id)
        if not read:
            raise StoreUnavailable from missing[Part.USER]
        return Overview(
            read.get(Part.USER),
            read.get(Part.POSTS),
            read.get(Part.FOLLOWERS),
            missing,
        )

    def _parts(self, user_id: int) -> dict[Part, Coroutine[Any, Any, Any]]:
        newest = PageRequest(NEWEST)
        published = PostFilter(author_id=user_id, state=State.PUBLISHED)
        return {
            Part.USER: self.accounts.by_id(user_id),
            Part.POSTS: self.posts.page(
                published, _NOBODY, Sort("created_at", descending=True), newest
            ),
            Part.FOLLOWERS: self.follows.page(
                Side.FOLLOWERS, user_id, newest_first=True, request=newest
            ),
        }


async def _together(
    parts: Mapping[Part, Coroutine[Any, Any, Any]], seconds: float
) -> tuple[dict[Part, Any], dict[Part, BaseException]]:
    """Run all parts at once; give what they gave, and why the others gave nothing.

    Nothing runs on after it, not even when it is cancelled.
    """
    tasks = {part: asyncio.create_task(work) for part, work in parts.items()}
    try:
        await asyncio.wait(tasks.values(), timeout=seconds)
    finally:
        for task in tasks.values():
            task.cancel()
        ended = await asyncio.gather(*tasks.values(), return_exceptions=True)
    outcomes = dict(zip(tasks, ended, strict=True))
    missing = {p: o for p, o in outcomes.items() if isinstance(o, BaseException)}
    return {p: o for p, o in outcomes.items() if p not in missing}, missing
