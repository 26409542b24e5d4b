"""Scores are documented, monotonic and between 0 and 100."""

import doctest
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.domain.errors import InvalidFields
from server.domain.members import scores
from server.domain.members.scores import Metrics, Weights, user_score

amounts = st.integers(0, 10**9)
days = st.floats(0, 1e6)


def test_score_docstring_examples_hold() -> None:
    """The examples in the docstrings are run."""
    result = doctest.testmod(scores)
    assert result.attempted >= 5
    assert result.failed == 0


@given(posts=amounts, followers=amounts, tenure=days, more=st.integers(0, 10**6))
def test_score_is_monotonic_and_bounded(
    posts: int, followers: int, tenure: float, more: int
) -> None:
    """A higher metric never lowers the score, which stays between 0 and 100."""
    score = user_score(Metrics(posts, followers, tenure)).value
    assert 0 <= score <= 100
    for better in (
        Metrics(posts + more, followers, tenure),
        Metrics(posts, followers + more, tenure),
        Metrics(posts, followers, tenure + more),
    ):
        assert user_score(better).value >= score - 1e-12


def test_score_rises_with_a_single_post() -> None:
    """One post, one follower or one day is visible in the score."""
    nothing, something = Metrics(0, 0, 0), Metrics(1, 1, 1)
    assert user_score(something).value > user_score(nothing).value == 0


@pytest.mark.parametrize(
    ("weights", "field"),
    [
        (Weights(0.5, 0.3, 0.3), "weights"),
        (Weights(0, 0, 0), "weights"),
        (Weights(0.5, 0.3, 0.2 + 2e-9), "weights"),
        (Weights(1.5, -0.3, -0.2), "weights.posts"),
        (Weights(1.2, -0.2, 0), "weights.followers"),
        (Weights(math.nan, 0.5, 0.5), "weights.posts"),
        (Weights(0, 1, math.inf), "weights.tenure"),
    ],
)
def test_score_refuses_invalid_weights(weights: Weights, field: str) -> None:
    """Weights are from 0 to 1 and sum to 1.0 within 1e-9."""
    with pytest.raises(InvalidFields) as caught:
        user_score(Metrics(1, 1, 1), weights)
    assert field in {violation.field for violation in caught.value.violations}


def test_score_tolerates_rounding_of_weights() -> None:
    """A sum within 1e-9 of 1.0 is accepted."""
    assert user_score(Metrics(0, 0, 0), Weights(0.7, 0.1, 0.2 - 5e-10))
