"""Categories: what posts stand in. Admins keep them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from server.domain.callers import Caller
from server.domain.clock import Clock
from server.domain.edits import Edit, check_writable, etag
from server.domain.idempotency import IdempotencyRecord
from server.domain.paging import (
    Page,
    PageParams,
    PageRequest,
    PageTokens,
    Position,
    Rows,
    Sort,
    paginate,
)


@dataclass(frozen=True, slots=True)
class Category:
    """What posts stand in; the slug is unique."""

    id: int
    slug: str
    name: str
    created_at: datetime
    updated_at: datetime
    version: int

    @property
    def etag(self) -> str:
        """The version as callers write it."""
        return etag(self.version)


class CategoryStore(Protocol):
    """Keeps categories."""

    async def add(
        self,
        slug: str,
        name: str,
        now: datetime,
        idempotency: IdempotencyRecord[Category] | None = None,
    ) -> Category:
        """Write a category. Raises SlugTaken, AnswerExists."""

    async def edit(
        self,
        category_id: int,
        edit: Edit,
        idempotency: IdempotencyRecord[Category] | None = None,
    ) -> Category:
        """Change a category.

        Raises CategoryNotFound, EtagMismatch, SlugTaken, AnswerExists.
        """

    async def delete(self, category_id: int, known: str) -> None:
        """Take a category away; deleted posts no longer stand in it.

        Raises CategoryNotFound, EtagMismatch, CategoryInUse.
        """

    async def page(self, sort: Sort, request: PageRequest) -> Rows[Category]:
        """Give one page, by at most three statements."""


WRITABLE = frozenset({"slug", "name"})
SORT_VALUES: dict[str, Callable[[Category], str]] = {
    "id": lambda category: str(category.id),
    "created_at": lambda category: category.created_at.isoformat(),
    "slug": lambda category: category.slug,
}


@dataclass(frozen=True, slots=True)
class Categories:
    """The rules of categories."""

    store: CategoryStore
    tokens: PageTokens
    clock: Clock

    async def create(
        self,
        slug: str,
        name: str,
        idempotency: IdempotencyRecord[Category] | None = None,
    ) -> Category:
        """Make a category. Raises SlugTaken."""
        return await self.store.add(slug, name, self.clock(), idempotency)

    async def update(
        self,
        category_id: int,
        values: Mapping[str, object],
        known: str,
        idempotency: IdempotencyRecord[Category] | None = None,
    ) -> Category:
        """Change fields of a category; `known` is the etag that must hold, if any.

        Raises InvalidFields, CategoryNotFound, EtagMismatch, SlugTaken.
        """
        check_writable("category", values, WRITABLE)
        edit = Edit(values, known, self.clock())
        return await self.store.edit(category_id, edit, idempotency)

    async def delete(self, category_id: int, known: str) -> None:
        """Delete a category. Raises CategoryNotFound, EtagMismatch, CategoryInUse."""
        await self.store.delete(category_id, known)

    async def list(
        self, caller: Caller, sort: Sort, page_params: PageParams
    ) -> Page[Category]:
        """Give one page. Raises InvalidFields for one that there cannot be."""

        async def read(request: PageRequest) -> Rows[Category]:
            return await self.store.page(sort, request)

        def end(last: Category) -> Position:
            return Position(SORT_VALUES[sort.key](last), last.id)

        context = ["categories", caller.subject, sort]
        return await paginate(page_params, self.tokens, context, read, end)
