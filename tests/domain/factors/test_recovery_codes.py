"""Recovery codes: their form, and what is stored of them."""

import re

import pytest

from server.domain.credentials.secret_key import SecretKey
from server.domain.factors.recovery_codes import RecoveryCodes

CODES = RecoveryCodes(SecretKey("s" * 32).mac("recovery"))


def test_ten_distinct_codes_of_fifty_bits() -> None:
    codes = CODES.create()
    assert len(set(codes)) == 10
    form = "[0-9a-hjkmnp-tv-z]{5}-[0-9a-hjkmnp-tv-z]{5}"
    assert all(re.fullmatch(form, code) for code in codes)


@pytest.mark.parametrize("spelling", ["0123a-bcdef", "O123ABCDEF", " oi23a bcdef"])
def test_spelling_does_not_matter(spelling: str) -> None:
    assert CODES.digest(7, spelling) == CODES.digest(7, "0123abcdef")


def test_digest_belongs_to_a_user() -> None:
    assert CODES.digest(7, "0123abcdef") != CODES.digest(8, "0123abcdef")


def test_digests_cover_the_previous_key() -> None:
    rotated = RecoveryCodes(SecretKey("n" * 32, "s" * 32).mac("recovery"))
    assert CODES.digest(7, "0123abcdef") in rotated.digests(7, "0123abcdef")
    assert CODES.digest(7, "0123abcdef") != rotated.digest(7, "0123abcdef")
