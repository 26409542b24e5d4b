"""Refresh tokens: rotation, retry, reuse."""

from datetime import timedelta

import pytest

from server.domain.credentials.secret_key import SecretKey
from server.domain.credentials.sessions import RefreshLimits, RefreshTokens, Session
from server.domain.errors import RefreshTokenInvalid
from tests.fakes import NOON

LIMITS = RefreshLimits(timedelta(days=30), timedelta(days=90), timedelta(seconds=10))


def tokens(
    secret: SecretKey | None = None, limits: RefreshLimits = LIMITS
) -> RefreshTokens:
    secret = secret or SecretKey("one secret")
    return RefreshTokens(secret.mac("refresh-tokens"), limits)


def opened() -> tuple[Session, str]:
    return tokens().open(7, "192.0.2.1", "a browser", NOON)


def after(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


def test_refresh_token_is_stored_hashed() -> None:
    """R21: 256 random bits, of which the session contains only a hash."""
    session, token = opened()
    assert token not in repr(session)
    assert len(token) == 86
    assert tokens().read_session_id(token) == session.id


def test_refresh_retry_returns_same_successor() -> None:
    """R19: the direct parent gets the same successor within the grace period."""
    session, first = opened()
    second = tokens().rotate(session, first, NOON)
    again = tokens().rotate(second.session, first, NOON + after(10))
    assert second.token != first
    assert again.token == second.token
    assert again.session == second.session


def test_refresh_parent_after_grace_is_reuse() -> None:
    """R18: after the grace period a used token ends the session."""
    session, first = opened()
    second = tokens().rotate(session, first, NOON)
    late = tokens().rotate(second.session, first, NOON + after(10.001))
    assert not late.token
    assert late.session.ended_at == NOON + after(10.001)


def test_refresh_grandparent_is_reuse_at_once() -> None:
    """R18, R19: only the direct parent may be used again."""
    session, first = opened()
    second = tokens().rotate(session, first, NOON)
    third = tokens().rotate(second.session, second.token, NOON)
    reused = tokens().rotate(third.session, first, NOON)
    assert not reused.token
    assert reused.session.ended_at
    with pytest.raises(RefreshTokenInvalid):
        tokens().rotate(reused.session, third.token, NOON)


def test_refresh_without_grace_allows_no_retry() -> None:
    """With REFRESH_GRACE=0 a retry after any time is reuse."""
    strict = tokens(limits=RefreshLimits(LIMITS.idle, LIMITS.absolute, timedelta(0)))
    session, first = opened()
    second = strict.rotate(session, first, NOON)
    assert not strict.rotate(second.session, first, NOON + after(0.001)).token


def test_refresh_idle_and_absolute_expiry() -> None:
    """R21: 30 days unused, and 90 days in any case."""
    session, token = opened()
    with pytest.raises(RefreshTokenInvalid):
        tokens().rotate(session, token, NOON + timedelta(days=30))
    now = NOON
    for _ in range(4):
        now += timedelta(days=20)
        rotation = tokens().rotate(session, token, now)
        session, token = rotation.session, rotation.token
    assert session.expires_at == NOON + timedelta(days=90)
    with pytest.raises(RefreshTokenInvalid):
        tokens().rotate(session, token, NOON + timedelta(days=90))


@pytest.mark.parametrize("damage", ["cut", "flip", "pad", "empty", "foreign", "junk"])
def test_forged_refresh_tokens_are_refused(damage: str) -> None:
    """Only an issued token names a session: a guessed one cannot end it."""
    _, token = opened()
    other = tokens(SecretKey("another secret")).open(7, "", "", NOON)[1]
    forged = {
        "cut": token[:-1],
        "flip": ("A" if token[0] != "A" else "B") + token[1:],
        "pad": token + "==",
        "empty": "",
        "foreign": other,
        "junk": "\ud800ü",
    }[damage]
    with pytest.raises(RefreshTokenInvalid):
        tokens().read_session_id(forged)


def test_refresh_survives_a_new_secret_key() -> None:
    """SECRET_KEY_PREVIOUS verifies tokens and derives a retry's successor."""
    session, first = opened()
    second = tokens().rotate(session, first, NOON)
    changed = tokens(SecretKey("a new secret", "one secret"))
    assert changed.read_session_id(first) == session.id
    assert changed.rotate(second.session, first, NOON + after(1)).token == second.token
    assert changed.rotate(second.session, second.token, NOON).token
