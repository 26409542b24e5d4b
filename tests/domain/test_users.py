"""The rules of accounts."""

import pytest

from server.domain.accounts.users import normalize_identifier


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("Ana@Example.COM", "ana@example.com"),
        ("boo\u212a", "boo\u212a"),
        ("\u0130STANBUL", "\u0130STANBUL"),
        ("\u0130" * 255, "\u0130" * 255),
    ],
)
def test_normalize_identifier_folds_ascii_only(text: str, folded: str) -> None:
    """R31: a Kelvin sign does not become "k", no text grows (CVE-2019-19844)."""
    assert normalize_identifier(text) == folded
