"""Recovery codes: their form, and what is stored of them."""

import re

import pytest

from server.domain.factors.recovery_codes import create_codes, digest

CODE = "0123abcdefghjkmnpqrstvwx"


def test_ten_distinct_codes_of_120_bits() -> None:
    codes = create_codes()
    assert len(set(codes)) == 10
    form = "[0-9a-hjkmnp-tv-z]{4}(-[0-9a-hjkmnp-tv-z]{4}){5}"
    assert all(re.fullmatch(form, code) for code in codes)


@pytest.mark.parametrize(
    "spelling",
    [
        "0123-abcd-efgh-jkmn-pqrs-tvwx",
        "O123ABCDEFGHJKMNPQRSTVWX",
        " oi23 abcdef ghjkmn pqrstvwx",
    ],
)
def test_spelling_does_not_matter(spelling: str) -> None:
    assert digest(7, spelling) == digest(7, CODE)


def test_digest_belongs_to_a_user() -> None:
    assert digest(7, CODE) != digest(8, CODE)
