"""Categories of posts. Admins manage them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from server.domain.callers import Caller
from server.domain.clock import Clock
from server.domain.edits import Edit, check_writable, etag_of
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
    """A category of posts; its slug is unique."""

    id: int
    slug: str
    name: str
    created_at: datetime
    updated_at: datetime
    version: int

    @property
    def etag(self) -> str:
        """The etag of this version."""
        return etag_of(self.version)


class CategoryStore(Protocol):
    """Stores categories."""

    async def add(
        self,
        slug: str,
        name: str,
        now: datetime,
        idempotency: IdempotencyRecord[Category] | None = None,
    ) -> Category:
        """Write a category. Raises SlugTaken, ResponseExists."""

    async def edit(
        self,
        category_id: int,
        edit: Edit,
        idempotency: IdempotencyRecord[Category] | None = None,
    ) -> Category:
        """Change a category.

        Raises CategoryNotFound, EtagMismatch, SlugTaken, ResponseExists.
        """

    async def delete(self, category_id: int, etag: str) -> None:
        """Delete a category, and remove it from soft-deleted posts.

        Raises CategoryNotFound, EtagMismatch, CategoryInUse.
        """

    async def page(self, sort: Sort, request: PageRequest) -> Rows[Category]:
        """Return one page, read with at most three statements."""


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
        """Create a category. Raises SlugTaken."""
        return await self.store.add(slug, name, self.clock(), idempotency)

    async def update(
        self,
        category_id: int,
        values: Mapping[str, object],
        etag: str,
        idempotency: IdempotencyRecord[Category] | None = None,
    ) -> Category:
        """Change fields of a category; a non-empty `etag` must be the current one.

        Raises InvalidFields, CategoryNotFound, EtagMismatch, SlugTaken.
        """
        check_writable("category", values, WRITABLE)
        edit = Edit(values, etag, self.clock())
        return await self.store.edit(category_id, edit, idempotency)

    async def delete(self, category_id: int, etag: str) -> None:
        """Delete a category. Raises CategoryNotFound, EtagMismatch, CategoryInUse."""
        await self.store.delete(category_id, etag)

    async def list(
        self, caller: Caller, sort: Sort, page_params: PageParams
    ) -> Page[Category]:
        """Return one page. Raises InvalidFields for one that cannot be read."""

        async def read(request: PageRequest) -> Rows[Category]:
            return await self.store.page(sort, request)

        def position_of(category: Category) -> Position:
            return Position(SORT_VALUES[sort.key](category), category.id)

        context = ["categories", caller.subject, sort]
        return await paginate(page_params, self.tokens, context, read, position_of)
