"""Pages of lists: page numbers, and signed tokens for keyset pagination.

Page numbers are for people and reach row 10,000. A page token holds the position of
the last row (keyset), so the cost of a page does not grow with its distance. A token
is signed and bound to the caller, the filter and the sort (compare CVE-2026-33503).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import orjson

from server.domain.credentials import base64url
from server.domain.credentials.secret_key import Mac
from server.domain.errors import InvalidFields, Violation

DEFAULT_PAGE_SIZE = 20
MAX_OFFSET = 10_000  # rows
_SIGNATURE_BYTES = 16
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Sort:
    """A sort key and direction; rows with equal keys are sorted by id."""

    key: str
    descending: bool = False

    @staticmethod
    def parse(text: str) -> Sort:
        """Parse `username` or `-username`; the empty text means `id`."""
        return Sort(text.removeprefix("-") or "id", text.startswith("-"))


@dataclass(frozen=True, slots=True)
class Position:
    """The position of a row in a list: its sort value, as text, and its id."""

    value: str
    id: int


@dataclass(frozen=True, slots=True)
class PageParams:
    """The paging fields of a request; None means the default."""

    number: int | None = None
    size: int | None = None
    token: str = ""


@dataclass(frozen=True, slots=True)
class PageRequest:
    """The page to read: by number, from 1, or after a position.

    With `allows_stale` its rows may be those of a moment ago. A page by number never
    is: it counts rows, and would leave one out that the page before it did not have.
    """

    size: int
    number: int = 1
    after: Position | None = None
    allows_stale: bool = False

    @property
    def offset(self) -> int:
        """The number of rows to skip; 0 for a page after a position."""
        return 0 if self.after else (self.number - 1) * self.size


@dataclass(frozen=True, slots=True)
class Rows(Generic[Item]):
    """The rows of one page, whether more follow, and how many rows match in all."""

    items: Sequence[Item]
    more: bool
    total: int
    total_estimated: bool


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """One page of a list; `number` is 0 for a page requested by token."""

    rows: Rows[Item]
    number: int
    size: int
    next_token: str

    @property
    def pages(self) -> int:
        """The number of pages of this size."""
        return -(-self.rows.total // self.size)

    @property
    def has_prev(self) -> bool:
        """Whether a page precedes this one; always true for a page by token."""
        return self.number != 1


@dataclass(frozen=True, slots=True)
class PageTokens:
    """Signs and verifies page tokens."""

    mac: Mac

    def make(self, position: Position, context: bytes) -> str:
        """Return the token of the page after `position`, valid in `context` only."""
        payload = orjson.dumps([position.value, position.id])
        signature = self.mac.sign(payload + context)[:_SIGNATURE_BYTES]
        return base64url.encode(signature + payload)

    def read(self, token: str, context: bytes) -> Position:
        """Return the position that a token holds.

        Raises InvalidFields unless it is, character by character, a token that was
        made for this context.
        """
        try:
            raw = base64url.decode(token)
        except ValueError:
            raw = b""
        signature, payload = raw[:_SIGNATURE_BYTES], raw[_SIGNATURE_BYTES:]
        if not self.mac.verify(payload + context, signature):
            raise InvalidFields([_FOREIGN_TOKEN])
        value, row_id = orjson.loads(payload)
        return Position(value, row_id)


def page_request(
    number: int | None, size: int | None, after: Position | None
) -> PageRequest:
    """Return the page to read.

    Raises InvalidFields for a number beside a token, or a page beyond MAX_OFFSET.
    """
    size = size or DEFAULT_PAGE_SIZE
    if after:
        if number is not None:
            raise InvalidFields([_NUMBER_AND_TOKEN])
        return PageRequest(size, after=after, allows_stale=True)
    number = number or 1
    if number * size > MAX_OFFSET:
        raise InvalidFields([_BEYOND_MAX_OFFSET])
    return PageRequest(size, number)


async def paginate(
    page_params: PageParams,
    tokens: PageTokens,
    context: Sequence[object],
    read: Callable[[PageRequest], Awaitable[Rows[Item]]],
    position_of: Callable[[Item], Position],
) -> Page[Item]:
    """Read one page, and make the token of the next.

    `context` is what a token is bound to: list, caller, filter and sort. Raises
    InvalidFields.
    """
    bound_to = orjson.dumps(context, default=str)
    after = tokens.read(page_params.token, bound_to) if page_params.token else None
    request = page_request(page_params.number, page_params.size, after)
    rows = await read(request)
    next_token = ""
    if rows.more:
        next_token = tokens.make(position_of(rows.items[-1]), bound_to)
    return Page(rows, 0 if after else request.number, request.size, next_token)


_FOREIGN_TOKEN = Violation(
    "pageToken",
    "must be the nextPageToken of a page with the same caller, filters and sort order",
    "page_token.foreign",
)
_NUMBER_AND_TOKEN = Violation(
    "page", "must be omitted when pageToken is set", "page.named_twice"
)
_BEYOND_MAX_OFFSET = Violation(
    "page",
    f"page x pageSize must not exceed {MAX_OFFSET:,}; use nextPageToken instead",
    "page.reach",
)
