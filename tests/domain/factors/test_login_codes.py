"""Codes that people copy from an e-mail."""

from dataclasses import replace
from uuid import uuid4

import pytest

from server.domain.credentials.secret_key import Mac
from server.domain.factors.challenges import Challenge, ChallengeKind
from server.domain.factors.login_codes import LoginCodeMacs
from server.domain.factors.readable_codes import ALPHABET, encode
from tests.fakes import NOON

MACS = LoginCodeMacs(Mac((b"k" * 32,)))


def challenge_with(code: str) -> Challenge:
    challenge_id = uuid4()
    return Challenge(
        id=challenge_id,
        kind=ChallengeKind.LOGIN_CODE,
        secret_hash=b"",
        created_at=NOON,
        expires_at=NOON,
        data=MACS.data(challenge_id, code) if code else {},
    )


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (bytes(5), "00000000"),
        (b"\xff" * 32, "zzzzzzzz"),
        (b"\x00\x44\x32\x14\xc7" + b"\xff" * 27, "01234567"),
    ],
)
def test_code_is_the_first_40_bits(raw: bytes, code: str) -> None:
    assert encode(raw, 8) == code


def test_alphabet_has_no_similar_letters() -> None:
    assert len(set(ALPHABET)) == 32
    assert not set(ALPHABET) & set("ilou")


@pytest.mark.parametrize(
    "spelled", ["7bq2m0w1", "7BQ2-M0W1", " 7bq2 moWl ", "7bq2mOwI"]
)
def test_code_matches_in_any_spelling(spelled: str) -> None:
    assert MACS.matches(challenge_with("7BQ2M0W1"), spelled)


def test_code_belongs_to_its_challenge() -> None:
    challenge = challenge_with("7BQ2M0W1")
    assert not MACS.matches(challenge, "7BQ2M0W2")
    assert not MACS.matches(replace(challenge, id=uuid4()), "7BQ2M0W1")


@pytest.mark.parametrize("code", ["", "00000000", "\ud800\x00"])
def test_challenge_without_a_code_matches_none(code: str) -> None:
    assert not MACS.matches(challenge_with(""), code)


def test_code_survives_a_change_of_the_secret_key() -> None:
    challenge = challenge_with("7BQ2M0W1")
    changed = LoginCodeMacs(Mac((b"n" * 32, b"k" * 32)))
    assert changed.matches(challenge, "7BQ2M0W1")
