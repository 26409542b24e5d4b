"""Scores: how much a member takes part, from 0 to 100."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from server.domain.clock import Clock
from server.domain.errors import InvalidFields, UserNotFound, Violation

# What half of a part's points is given for.
HALF_OF_POSTS = 20
HALF_OF_FOLLOWERS = 50
HALF_OF_DAYS = 365
TOLERANCE = 1e-9
SECONDS_PER_DAY = 86_400


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each part counts; together 1.0, to within TOLERANCE."""

    posts: float = 0.5
    followers: float = 0.3
    tenure: float = 0.2


@dataclass(frozen=True, slots=True)
class Metrics:
    """What a member has done: published posts, followers, days since signing up."""

    posts: int
    followers: int
    days: float


@dataclass(frozen=True, slots=True)
class Parts:
    """Each metric brought to 0..1."""

    posts: float
    followers: float
    tenure: float


@dataclass(frozen=True, slots=True)
class Score:
    """A score with what it was made of."""

    value: float
    weights: Weights
    parts: Parts


@dataclass(frozen=True, slots=True)
class Counted:
    """What a store counts of a member, each to a limit far beyond what matters."""

    posts: int
    followers: int
    created_at: datetime


class MetricStore(Protocol):
    """Counts what members have done."""

    async def counted(self, user_id: int) -> Counted | None:
        """Count, by one statement; None if there is no such account."""


DEFAULT_WEIGHTS = Weights()


def normalized(amount: float, half: float) -> float:
    """Bring an amount from 0 upwards to 0..1: `amount / (amount + half)`.

    It grows with every bit more, and ever more slowly: `half` is worth 0.5.

    >>> [round(normalized(n, 20), 3) for n in (0, 1, 20, 180, 10**6)]
    [0.0, 0.048, 0.5, 0.9, 1.0]
    """
    amount = max(amount, 0)
    return amount / (amount + half)


def user_score(metrics: Metrics, weights: Weights = DEFAULT_WEIGHTS) -> Score:
    """Give how much a member takes part.

    Formula: `100 * (w.posts * n(posts, 20) + w.followers * n(followers, 50) +
    w.tenure * n(days, 365))`, where `n` is `normalized`.
    Units: published posts, followers, days; the score is in points.
    Range: 0.0 to 100.0. It never falls when a metric rises.
    Raises InvalidFields if a weight is below 0, above 1 or no number, or if they do
    not sum to 1.0 within 1e-9.

    >>> user_score(Metrics(posts=20, followers=50, days=365)).value
    50.0
    >>> user_score(Metrics(posts=0, followers=0, days=0)).value
    0.0
    >>> only_posts = Weights(posts=1.0, followers=0.0, tenure=0.0)
    >>> user_score(Metrics(posts=60, followers=7, days=9), only_posts).value
    75.0
    >>> user_score(Metrics(1, 1, 1), Weights(0.5, 0.5, 0.5))
    Traceback (most recent call last):
    server.domain.errors.InvalidFields: invalid request: weights: must sum to 1.0, \
not to 1.5
    """
    _check(weights)
    parts = Parts(
        normalized(metrics.posts, HALF_OF_POSTS),
        normalized(metrics.followers, HALF_OF_FOLLOWERS),
        normalized(metrics.days, HALF_OF_DAYS),
    )
    weighed = math.fsum(
        (
            weights.posts * parts.posts,
            weights.followers * parts.followers,
            weights.tenure * parts.tenure,
        )
    )
    return Score(min(100.0, 100 * weighed), weights, parts)


def _check(weights: Weights) -> None:
    each = {name: getattr(weights, name) for name in ("posts", "followers", "tenure")}
    broken = [
        Violation(f"weights.{name}", "must be from 0 to 1", "weights.range")
        for name, weight in each.items()
        if not 0 <= weight <= 1  # NaN is neither
    ]
    total = math.fsum(each.values())
    if not broken and abs(total - 1) > TOLERANCE:
        told = f"must sum to 1.0, not to {total:.12g}"
        broken = [Violation("weights", told, "weights.sum")]
    if broken:
        raise InvalidFields(broken)


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of members, as of now."""

    store: MetricStore
    clock: Clock

    async def of(self, user_id: int, weights: Weights) -> Score:
        """Give a member's score. Raises InvalidFields, UserNotFound."""
        _check(weights)
        counted = await self.store.counted(user_id)
        if counted is None:
            raise UserNotFound(user_id)
        days = (self.clock() - counted.created_at).total_seconds() / SECONDS_PER_DAY
        metrics = Metrics(counted.posts, counted.followers, days)
        return user_score(metrics, weights)
