"""Scores: how active a member is, from 0 to 100."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Protocol

from server.domain.clock import Clock
from server.domain.errors import InvalidFields, UserNotFound, Violation

# The amount that yields half of a part's points.
HALF_OF_POSTS = 20
HALF_OF_FOLLOWERS = 50
HALF_OF_DAYS = 365
TOLERANCE = 1e-9
SECONDS_PER_DAY = 86_400


@dataclass(frozen=True, slots=True)
class Weights:
    """The weight of each part; their sum is 1.0, within TOLERANCE."""

    posts: float = 0.5
    followers: float = 0.3
    tenure: float = 0.2


@dataclass(frozen=True, slots=True)
class Metrics:
    """A member's published posts, followers, and days since they signed up."""

    posts: int
    followers: int
    days: float


@dataclass(frozen=True, slots=True)
class Parts:
    """Each metric, normalized to 0..1."""

    posts: float
    followers: float
    tenure: float


@dataclass(frozen=True, slots=True)
class Score:
    """A score, with the weights and parts it is computed from."""

    value: float
    weights: Weights
    parts: Parts


@dataclass(frozen=True, slots=True)
class MemberCounts:
    """A member's posts and followers, each counted to a limit, and their sign-up."""

    posts: int
    followers: int
    created_at: datetime


class MetricStore(Protocol):
    """Counts posts and followers."""

    async def counts(self, user_id: int) -> MemberCounts | None:
        """Return a member's counts, by one statement; None for an unknown account."""


DEFAULT_WEIGHTS = Weights()


def normalized(amount: float, half: float) -> float:
    """Return an amount of 0 or more on the scale 0..1: `amount / (amount + half)`.

    It grows strictly and ever more slowly; `half` yields 0.5.

    >>> [round(normalized(n, 20), 3) for n in (0, 1, 20, 180, 10**6)]
    [0.0, 0.048, 0.5, 0.9, 1.0]
    """
    amount = max(amount, 0)
    return amount / (amount + half)


def user_score(metrics: Metrics, weights: Weights = DEFAULT_WEIGHTS) -> Score:
    """Return a member's score.

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
    server.domain.errors.base.InvalidFields: invalid request: weights: must sum \
to 1.0; the sum is 1.5
    """
    _check(weights)
    parts = Parts(
        normalized(metrics.posts, HALF_OF_POSTS),
        normalized(metrics.followers, HALF_OF_FOLLOWERS),
        normalized(metrics.days, HALF_OF_DAYS),
    )
    weighted_sum = math.fsum(
        (
            weights.posts * parts.posts,
            weights.followers * parts.followers,
            weights.tenure * parts.tenure,
        )
    )
    return Score(min(100.0, 100 * weighted_sum), weights, parts)


def _check(weights: Weights) -> None:
    by_name = asdict(weights)
    violations = [
        Violation(f"weights.{name}", "must be from 0 to 1", "weights.range")
        for name, weight in by_name.items()
        if not 0 <= weight <= 1  # false for NaN, too
    ]
    total = math.fsum(by_name.values())
    if not violations and abs(total - 1) > TOLERANCE:
        description = f"must sum to 1.0; the sum is {total:.12g}"
        violations = [Violation("weights", description, "weights.sum")]
    if violations:
        raise InvalidFields(violations)


@dataclass(frozen=True, slots=True)
class Scores:
    """The current scores of members."""

    store: MetricStore
    clock: Clock

    async def get(self, user_id: int, weights: Weights) -> Score:
        """Return a member's score. Raises InvalidFields, UserNotFound."""
        _check(weights)
        counts = await self.store.counts(user_id)
        if counts is None:
            raise UserNotFound(user_id)
        days = (self.clock() - counts.created_at).total_seconds() / SECONDS_PER_DAY
        metrics = Metrics(counts.posts, counts.followers, days)
        return user_score(metrics, weights)
