"""Pages and the tokens that name them."""

import pytest

from server.domain.credentials.secret_key import SecretKey
from server.domain.errors import InvalidFields
from server.domain.paging import PageTokens, Position, page_request

TOKENS = PageTokens(SecretKey("s" * 32).mac("page-tokens"))
POSITION = Position("ana", 7)
TOKEN = TOKENS.make(POSITION, b"x")
SPELLINGS = (TOKEN + "!", f"{TOKEN}\n", f"{TOKEN[:4]} {TOKEN[4:]}", f"{TOKEN}==")


def test_a_token_says_where_to_go_on() -> None:
    assert TOKENS.read(TOKENS.make(POSITION, b"x"), b"x") == POSITION


@pytest.mark.parametrize(
    ("token", "context"),
    [
        (TOKENS.make(POSITION, b"x"), b"y"),
        (TOKENS.make(POSITION, b"x")[:-2], b"x"),
        ("", b"x"),
        ("A" * 40, b"x"),
        ("ü", b"x"),
        ("not base64!", b"x"),
        *((text, b"x") for text in SPELLINGS),
    ],
)
def test_forged_tokens_are_refused(token: str, context: bytes) -> None:
    """R29: bound to caller, filter and sort; a forged one is bad input."""
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
def test_pages_out_of_reach(
    number: int | None, size: int | None, after: Position | None, rule: str
) -> None:
    with pytest.raises(InvalidFields) as caught:
        page_request(number, size, after)
    assert caught.value.violations[0].rule == rule


def test_defaults() -> None:
    """Page 1 of 20; row 10,000 is the last that a number reaches."""
    assert (
        page_request(None, None, None).offset,
        page_request(None, None, None).size,
    ) == (0, 20)
    assert page_request(100, 100, None).offset == 9_900
