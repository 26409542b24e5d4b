"""The paging fields that all List RPCs share."""

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
        """Return whether a field is set."""


class PageFields(TypedDict):
    """The fields of a List response beside its items."""

    total: int
    total_estimated: bool
    page: int
    size: int
    pages: int
    has_next: bool
    has_prev: bool
    next_page_token: str


def page_params(request: ListRequest) -> PageParams:
    """Return the paging fields of a request."""
    return PageParams(
        number=request.page if request.HasField("page") else None,
        size=request.page_size if request.HasField("page_size") else None,
        token=request.page_token,
    )


def page_fields(page: Page[Any]) -> PageFields:
    """Return the fields of a List response beside its items."""
    return PageFields(
        total=page.rows.total,
        total_estimated=page.rows.total_estimated,
        page=page.number,
        size=page.size,
        pages=page.pages,
        has_next=page.rows.more,
        has_prev=page.has_prev,
        next_page_token=page.next_token,
    )
