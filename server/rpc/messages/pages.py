"""Pages in messages: every List RPC asks and answers alike."""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypedDict

from server.domain.paging import Page, PageParams


class ListRequest(Protocol):
    """The request of a List RPC."""

    page: int
    page_size: int
    page_token: str

    def HasField(  # noqa: N802 - protobuf's name
        self, field_name: Literal["page", "page_size"], /
    ) -> bool:
        """Tell whether a field is set."""


class PageNumbers(TypedDict):
    """What an answer says of its page beside the items."""

    total: int
    total_estimated: bool
    page: int
    size: int
    pages: int
    has_next: bool
    has_prev: bool
    next_page_token: str


def page_params(request: ListRequest) -> PageParams:
    """Give the page that a request asks for."""
    return PageParams(
        number=request.page if request.HasField("page") else None,
        size=request.page_size if request.HasField("page_size") else None,
        token=request.page_token,
    )


def numbers(page: Page[Any]) -> PageNumbers:
    """Give what an answer says of a page."""
    return PageNumbers(
        total=page.rows.total,
        total_estimated=page.rows.total_estimated,
        page=page.number,
        size=page.size,
        pages=page.pages,
        has_next=page.rows.more,
        has_prev=page.has_prev,
        next_page_token=page.next_token,
    )
