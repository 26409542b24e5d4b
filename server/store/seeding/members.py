"""Rows of made-up members, in batches whose rows refer to no later batch.

Times are spread over two years of sign-ups and the last month of sessions: none of the
rows is at the end of its retention. Followers are distributed unevenly, as in reality:
the earliest members have the most.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from uuid import UUID

from server.domain.accounts.users import Role
from server.domain.posts.posts import PostState

SIGN_UP_SPAN = timedelta(days=730)
SESSION_SPAN = timedelta(days=29)
SESSION_LIFETIME = timedelta(days=30)
NAMES = (
    "ana",
    "ben",
    "chloe",
    "david",
    "elena",
    "farid",
    "grace",
    "hugo",
    "ines",
    "jan",
)
DEVICES = ("Firefox on Linux", "Chrome on Android", "Safari on iOS", "Edge on Windows")
BODY = "A paragraph of a post that exists for load tests only. " * 5
# One member in so many. Prime, so that no value goes with one of the ten names: else a
# list of inactive users by name would read nearly all others first.
_TEACHERS, _INACTIVE, _UNVERIFIED, _DRAFTS = 53, 97, 11, 11
_ENDED_SHARE = 0.2  # of the sessions of active members
_HASH_BYTES, _NONCE_BYTES = 32, 16
Row = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class SeedSizes:
    """How many rows to write. The first members follow fewer: only earlier ones."""

    users: int
    sessions_per_user: int = 10
    posts_per_user: int = 1
    follows_per_user: int = 10


@dataclass(frozen=True, slots=True)
class Member:
    """A member; `number` counts from 0."""

    number: int
    id: int
    joined_at: datetime

    @property
    def is_active(self) -> bool:
        """Whether the account is enabled."""
        return self.number % _INACTIVE != _INACTIVE - 1


class MemberRows:
    """Generates rows; keeps the ids and the counts of all members so far."""

    def __init__(self, sizes: SeedSizes, password_hash: str, now: datetime) -> None:
        self._sizes = sizes
        self._password_hash = password_hash
        self._now = now
        self._random = Random()  # noqa: S311 - no secret is derived from it
        self._ids = array("q")
        self._followers = array("q")
        self._published = array("q")
        self._last_seen = array("d")

    def add_members(self, ids: Sequence[int]) -> list[Member]:
        """Return the next members, with these ids."""
        first, step = len(self._ids), SIGN_UP_SPAN / self._sizes.users
        start = self._now - SIGN_UP_SPAN
        self._ids.extend(ids)
        for counts in (self._followers, self._published):
            counts.extend([0] * len(ids))
        self._last_seen.extend([0.0] * len(ids))
        return [
            Member(number, user_id, start + step * number)
            for number, user_id in enumerate(ids, first)
        ]

    def users(self, members: Sequence[Member]) -> Iterator[Row]:
        """Yield rows of `users`: see `USER_COLUMNS`."""
        for member in members:
            username = f"{NAMES[member.number % len(NAMES)]}_{member.id}"
            yield (
                member.id,
                f"{username}@bench.invalid",
                username,
                username,
                self._password_hash,
                Role.STUDENT if member.number % _TEACHERS else Role.TEACHER,
                member.is_active,
                member.number % _UNVERIFIED != 0,
                member.joined_at,
                member.joined_at,
            )

    def sessions(self, members: Sequence[Member]) -> Iterator[Row]:
        """Yield rows of `sessions`: see `SESSION_COLUMNS`."""
        for member in members:
            for _ in range(self._sizes.sessions_per_user):
                yield self._session(member)

    def _session(self, member: Member) -> Row:
        random = self._random
        earliest = max(member.joined_at, self._now - SESSION_SPAN)
        created_at = self._between(earliest, self._now)
        last_used_at = self._between(created_at, self._now)
        is_open = member.is_active and random.random() >= _ENDED_SHARE
        self._last_seen[member.number] = max(
            self._last_seen[member.number], last_used_at.timestamp()
        )
        return (
            UUID(int=random.getrandbits(128), version=4),
            member.id,
            random.randbytes(_HASH_BYTES),
            random.randbytes(_HASH_BYTES),
            random.randbytes(_NONCE_BYTES),
            created_at,
            last_used_at,
            last_used_at + SESSION_LIFETIME,
            f"198.18.{random.randrange(256)}.{random.randrange(256)}",
            random.choice(DEVICES),
            None if is_open else last_used_at,
        )

    def posts(
        self, members: Sequence[Member], category_ids: Sequence[int]
    ) -> Iterator[Row]:
        """Yield rows of `posts`: see `POST_COLUMNS`."""
        for member in members:
            for number in range(self._sizes.posts_per_user):
                is_draft = (member.number + number) % _DRAFTS == 0
                created_at = self._between(member.joined_at, self._now)
                self._published[member.number] += not is_draft
                yield (
                    member.id,
                    self._random.choice(category_ids),
                    f"Post {number + 1} of member {member.number + 1}",
                    BODY,
                    PostState.DRAFT if is_draft else PostState.PUBLISHED,
                    created_at,
                    created_at,
                    None if is_draft else created_at,
                )

    def follows(self, members: Sequence[Member]) -> Iterator[Row]:
        """Yield rows of `follows`: see `FOLLOW_COLUMNS`."""
        for member in members:
            for number in self._followed_by(member):
                self._followers[number] += 1
                followed_at = self._between(member.joined_at, self._now)
                yield member.id, self._ids[number], followed_at

    def _followed_by(self, member: Member) -> set[int]:
        """Return numbers of earlier members, small ones more often."""
        wanted = min(self._sizes.follows_per_user, member.number)
        numbers: set[int] = set()
        while len(numbers) < wanted:
            numbers.add(int(member.number * self._random.random() ** 2))
        return numbers

    def counts(self, first: int, last: int) -> Iterator[Row]:
        """Yield rows of `user_analytics`: see `COUNT_COLUMNS`."""
        for number in range(first, last):
            seen = self._last_seen[number]
            yield (
                self._ids[number],
                self._published[number],
                self._followers[number],
                datetime.fromtimestamp(seen, UTC) if seen else None,
                self._now,
                False,
            )

    def _between(self, earliest: datetime, latest: datetime) -> datetime:
        return earliest + (latest - earliest) * self._random.random()
