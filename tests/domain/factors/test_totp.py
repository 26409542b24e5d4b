"""Codes of authenticator apps, compared with pyotp."""

import pyotp
import pytest

from server.domain.credentials.secret_key import SecretKey
from server.domain.factors.totp import Totp, TotpSecret
from tests.fakes import NOON, Clock

NOW = int(NOON.timestamp())
STEP = NOW // 30
SECRET = SecretKey("s" * 32)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def totp(clock: Clock) -> Totp:
    return Totp(SECRET.cipher("totp"), "Academy", clock)


@pytest.fixture
def secret(totp: Totp) -> TotpSecret:
    return totp.create("ana")


def code_at(secret: TotpSecret, step: int) -> str:
    return pyotp.TOTP(secret.base32).at(step * 30)


@pytest.mark.parametrize(("offset", "accepted"), [
    (-2, False), (-1, True), (0, True), (1, True), (2, False),
])  # fmt: skip
def test_code_of_the_present_and_neighbouring_steps_is_accepted(
    totp: Totp, secret: TotpSecret, offset: int, accepted: bool
) -> None:
    code = code_at(secret, STEP + offset)
    step = totp.matching_step(secret.encrypted, code, 0)
    assert step == (STEP + offset if accepted else None)


@pytest.mark.parametrize("last_step", [STEP, STEP + 1, STEP + 9])
def test_step_up_to_the_last_one_is_not_accepted(
    totp: Totp, secret: TotpSecret, last_step: int
) -> None:
    """Neither the same code again nor an older one after a newer one."""
    code = code_at(secret, STEP)
    assert totp.matching_step(secret.encrypted, code, last_step) is None


def test_code_of_another_secret_is_not_accepted(totp: Totp, secret: TotpSecret) -> None:
    other = code_at(totp.create("ana"), STEP)
    if other != code_at(secret, STEP):
        assert totp.matching_step(secret.encrypted, other, 0) is None


def test_secret_is_readable_under_the_previous_key(secret: TotpSecret) -> None:
    """And only under the new one after it was encrypted again."""
    both = Totp(SecretKey("n" * 32, "s" * 32).cipher("totp"), "Academy", Clock())
    new = Totp(SecretKey("n" * 32).cipher("totp"), "Academy", Clock())
    code = code_at(secret, STEP)
    assert both.matching_step(secret.encrypted, code, 0) == STEP
    assert new.matching_step(secret.encrypted, code, 0) is None
    assert new.matching_step(both.reencrypted(secret.encrypted), code, 0) == STEP


def test_stored_secret_is_encrypted(secret: TotpSecret) -> None:
    key = pyotp.TOTP(secret.base32).byte_secret()
    assert len(key) == 20
    assert key not in secret.encrypted


def test_code_of_rfc_6238(totp: Totp, clock: Clock) -> None:
    """The test vector of appendix B for SHA-1 at 59 s, cut to six digits."""
    encrypted = totp.cipher.encrypt(b"12345678901234567890")
    clock.advance(59 - NOW)
    assert totp.matching_step(encrypted, "287082", 0) == 1
