"""Following: who follows whom. Deleted accounts neither follow nor are followed."""

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
    """Which list of a member: their followers, or those whom they follow."""

    FOLLOWERS = auto()
    FOLLOWING = auto()


@dataclass(frozen=True, slots=True)
class Follow:
    """The account on the other side of a follow, and when it began."""

    user: User
    since: datetime


class FollowStore(Protocol):
    """Stores follows."""

    async def add(self, follower_id: int, followed_id: int, now: datetime) -> None:
        """Write a follow unless it exists. Raises UserNotFound."""

    async def remove(self, follower_id: int, followed_id: int, now: datetime) -> None:
        """Delete a follow if it exists."""

    async def page(
        self, side: Side, user_id: int, *, newest_first: bool, request: PageRequest
    ) -> Rows[Follow]:
        """Return one page in the order of following, with at most three statements."""


class AccountReader(Protocol):
    """Reads accounts by id."""

    async def by_id(self, user_id: int) -> User | None:
        """Return the account with this id, or None."""


@dataclass(frozen=True, slots=True)
class Follows:
    """The rules of following."""

    store: FollowStore
    accounts: AccountReader
    tokens: PageTokens
    clock: Clock

    async def follow(self, follower_id: int, followed_id: int) -> None:
        """Start to follow a member; a repeat changes nothing.

        Raises SelfFollow, UserNotFound.
        """
        if follower_id == followed_id:
            raise SelfFollow
        await self.store.add(follower_id, followed_id, self.clock())

    async def unfollow(self, follower_id: int, followed_id: int) -> None:
        """Stop following a member; a repeat changes nothing."""
        await self.store.remove(follower_id, followed_id, self.clock())

    async def list(
        self,
        caller: Caller,
        side: Side,
        user_id: int,
        sort: Sort,
        page_params: PageParams,
    ) -> Page[Follow]:
        """Return one page of an account's followers, or of whom it follows.

        Raises UserNotFound, and InvalidFields for a page that cannot be read.
        """
        if await self.accounts.by_id(user_id) is None:
            raise UserNotFound(user_id)

        async def read(request: PageRequest) -> Rows[Follow]:
            newest_first = sort.descending
            return await self.store.page(
                side, user_id, newest_first=newest_first, request=request
            )

        context = [side.name, caller.subject, user_id, sort.descending]
        return await paginate(page_params, self.tokens, context, read, _position_of)


def _position_of(follow: Follow) -> Position:
    return Position(follow.since.isoformat(), follow.user.id)
