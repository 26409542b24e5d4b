"""Follows: who wants to read whom. The deleted neither follow nor are followed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from typing import Protocol

from server.domain.accounts.users import User
from server.domain.callers import Caller
from server.domain.clock import Clock
from server.domain.errors import SelfFollow, UserNotFound
from server.domain.paging import (
    Page,
    PageParams,
    PageRequest,
    PageTokens,
    Position,
    Rows,
    Sort,
    paginate,
)


class Side(Enum):
    """Which way a list looks."""

    FOLLOWERS = auto()
    FOLLOWING = auto()


@dataclass(frozen=True, slots=True)
class Follow:
    """The account at the other end, and since when."""

    user: User
    since: datetime


class FollowStore(Protocol):
    """Keeps follows."""

    async def add(self, follower_id: int, followed_id: int, now: datetime) -> None:
        """Write a follow, unless there is one. Raises UserNotFound."""

    async def remove(self, follower_id: int, followed_id: int, now: datetime) -> None:
        """Take a follow away, if there is one."""

    async def page(
        self, side: Side, user_id: int, *, newest_first: bool, request: PageRequest
    ) -> Rows[Follow]:
        """Give one page in the order of following, by at most three statements."""


class Accounts(Protocol):
    """Knows who there is."""

    async def by_id(self, user_id: int) -> User | None:
        """Give the account with this id."""


@dataclass(frozen=True, slots=True)
class Follows:
    """The rules of following."""

    store: FollowStore
    accounts: Accounts
    tokens: PageTokens
    clock: Clock

    async def follow(self, follower_id: int, followed_id: int) -> None:
        """Have one follow another; a second time it changes nothing.

        Raises SelfFollow, UserNotFound.
        """
        if follower_id == followed_id:
            raise SelfFollow
        await self.store.add(follower_id, followed_id, self.clock())

    async def unfollow(self, follower_id: int, followed_id: int) -> None:
        """End a follow; where there is none it changes nothing."""
        await self.store.remove(follower_id, followed_id, self.clock())

    async def list(
        self,
        caller: Caller,
        side: Side,
        user_id: int,
        sort: Sort,
        page_params: PageParams,
    ) -> Page[Follow]:
        """Give one page of who follows, or is followed by, an account.

        Raises UserNotFound, and InvalidFields for a page that there cannot be.
        """
        if await self.accounts.by_id(user_id) is None:
            raise UserNotFound(user_id)

        async def read(request: PageRequest) -> Rows[Follow]:
            newest_first = sort.descending
            return await self.store.page(
                side, user_id, newest_first=newest_first, request=request
            )

        context = [side.name, caller.subject, user_id, sort.descending]
        return await paginate(page_params, self.tokens, context, read, _end)


def _end(follow: Follow) -> Position:
    return Position(follow.since.isoformat(), follow.user.id)
