"""Page requests and page tokens."""

import pytest

from server.domain.credentials.secret_key import SecretKey
from server.domain.errors import InvalidFields
from server.domain.paging import PageTokens, Position, page_request

TOKENS = PageTokens(SecretKey("s" * 32).mac("page-tokens"))
# its token has a "_" or "-", and spare bits in the last character
POSITION = Position("a\u00bf\u00ff\u00be", 7)
STANDARD_BASE64 = str.maketrans("-_", "+/")
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def with_spare_bits(token: str) -> str:
    """Return another text that lenient decoders read as the same bytes."""
    return token[:-1] + ALPHABET[ALPHABET.index(token[-1]) + 1]


def test_page_token_holds_its_position() -> None:
    assert TOKENS.read(TOKENS.make(POSITION, b"x"), b"x") == POSITION


@pytest.mark.parametrize(
    ("token", "context"),
    [
        (TOKENS.make(POSITION, b"x"), b"y"),
        (TOKENS.make(POSITION, b"x")[:-2], b"x"),
        (TOKENS.make(POSITION, b"x") + "=", b"x"),
        (TOKENS.make(POSITION, b"x") + "==", b"x"),
        (TOKENS.make(POSITION, b"x") + "!", b"x"),
        (TOKENS.make(POSITION, b"x") + "\n", b"x"),
        (" " + TOKENS.make(POSITION, b"x"), b"x"),
        (TOKENS.make(POSITION, b"x").translate(STANDARD_BASE64), b"x"),
        (with_spare_bits(TOKENS.make(POSITION, b"x")), b"x"),
        ("", b"x"),
        ("A" * 40, b"x"),
        ("ü", b"x"),
        ("not base64!", b"x"),
    ],
)
def test_page_token_refuses_forgeries(token: str, context: bytes) -> None:
    """R29: a token is bound to its context and has one spelling only."""
    with pytest.raises(InvalidFields) as caught:
        TOKENS.read(token, context)
    assert caught.value.violations[0].field == "pageToken"


@pytest.mark.parametrize(
    ("number", "size", "after", "rule"),
    [
        (101, 100, None, "page.reach"),
        (2**31 - 1, 100, None, "page.reach"),
        (1, None, POSITION, "page.named_twice"),
    ],
)
def test_page_request_refuses_unreadable_pages(
    number: int | None, size: int | None, after: Position | None, rule: str
) -> None:
    with pytest.raises(InvalidFields) as caught:
        page_request(number, size, after)
    assert caught.value.violations[0].rule == rule


def test_page_request_defaults() -> None:
    """Page 1 of 20; row 10,000 is the last that a number reaches."""
    assert (
        page_request(None, None, None).offset,
        page_request(None, None, None).size,
    ) == (0, 20)
    assert page_request(100, 100, None).offset == 9_900
