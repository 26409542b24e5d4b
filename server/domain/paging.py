"""Pages: which rows a page holds, and tokens that name the next one.

Page numbers serve people and reach to row 10,000. A token is keyset: it holds
where the page before ended, so its cost does not grow. It is signed and bound
to the caller, the filter and the sort (CVE-2026-33503 is what happens without).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import orjson

from server.domain.credentials import base64url
from server.domain.credentials.secret_key import Mac
from server.domain.errors import InvalidFields, Violation

MAX_OFFSET = 10_000
_TAG_BYTES = 16
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Sort:
    """An order of rows; it always ends in the id, so that it is total."""

    key: str
    descending: bool = False

    @staticmethod
    def parse(text: str) -> Sort:
        """Read `username` or `-username`; the empty text is `id`."""
        return Sort(text.lstrip("-") or "id", text.startswith("-"))


@dataclass(frozen=True, slots=True)
class Position:
    """Where a page ended: the last row's sort value, as text, and its id."""

    value: str
    id: int


@dataclass(frozen=True, slots=True)
class PageParams:
    """The page that a caller asks for: by number, or by token; None is the default."""

    number: int | None = None
    size: int | None = None
    token: str = ""


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Which page: by number, from 1, or after a position."""

    size: int
    number: int = 1
    after: Position | None = None

    @property
    def offset(self) -> int:
        """How many rows go before, when it is asked for by number."""
        return 0 if self.after else (self.number - 1) * self.size


@dataclass(frozen=True, slots=True)
class Rows(Generic[Item]):
    """What a store gives: the rows, whether more follow, and how many there are."""

    items: Sequence[Item]
    more: bool
    total: int
    total_estimated: bool


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """A page as callers see it; `number` is 0 when it was asked for by token."""

    rows: Rows[Item]
    number: int
    size: int
    next_token: str

    @property
    def pages(self) -> int:
        """How many pages of this size hold all rows."""
        return -(-self.rows.total // self.size)

    @property
    def has_prev(self) -> bool:
        """Whether rows go before this page; a token always has a page before it."""
        return self.number != 1


@dataclass(frozen=True, slots=True)
class PageTokens:
    """Makes and reads page tokens."""

    mac: Mac

    def make(self, position: Position, context: bytes) -> str:
        """Give the token for what follows `position`, good in `context` only."""
        payload = orjson.dumps([position.value, position.id])
        tag = self.mac.sign(payload + context)[:_TAG_BYTES]
        return base64url.encode(tag + payload)

    def read(self, token: str, context: bytes) -> Position:
        """Give the position; InvalidFields unless it was made for this context."""
        try:
            raw = base64url.decode(token)
        except ValueError:
            raw = b""
        tag, payload = raw[:_TAG_BYTES], raw[_TAG_BYTES:]
        if not self.mac.verify(payload + context, tag):
            raise InvalidFields([_FOREIGN_TOKEN])
        value, row_id = orjson.loads(payload)
        return Position(value, row_id)


def page_request(
    number: int | None, size: int | None, after: Position | None
) -> PageRequest:
    """Give the page asked for; InvalidFields if it is named twice or out of reach."""
    size = size or 20
    if after:
        if number is not None:
            raise InvalidFields([_NAMED_TWICE])
        return PageRequest(size, after=after)
    number = number or 1
    if number * size > MAX_OFFSET:
        raise InvalidFields([_OUT_OF_REACH])
    return PageRequest(size, number)


async def paginate(
    page_params: PageParams,
    tokens: PageTokens,
    context: Sequence[object],
    read: Callable[[PageRequest], Awaitable[Rows[Item]]],
    end: Callable[[Item], Position],
) -> Page[Item]:
    """Read the page asked for, and name the next one.

    `context` is what a token is good for: list, caller, filter, sort. `end` gives
    where a row stands. Raises InvalidFields.
    """
    bound = orjson.dumps(context, default=str)
    after = tokens.read(page_params.token, bound) if page_params.token else None
    request = page_request(page_params.number, page_params.size, after)
    rows = await read(request)
    next_token = tokens.make(end(rows.items[-1]), bound) if rows.more else ""
    return Page(rows, 0 if after else request.number, request.size, next_token)


_FOREIGN_TOKEN = Violation(
    "pageToken",
    "must be the nextPageToken of a page with the same caller, filters and sort",
    "page_token.foreign",
)
_NAMED_TWICE = Violation(
    "page", "must be left out when pageToken is given", "page.named_twice"
)
_OUT_OF_REACH = Violation(
    "page",
    f"page x pageSize must not be above {MAX_OFFSET:,}: follow nextPageToken instead",
    "page.reach",
)
