"""Posts: writing, reading, listing and exporting them, and who may do what."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Protocol

from server.domain.callers import Caller
from server.domain.clock import Clock
from server.domain.edits import Edit, check_writable, etag_of
from server.domain.errors import (
    AccessDenied,
    InvalidFields,
    PostNotFound,
    Violation,
)
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
from server.domain.posts.categories import Category

EXCERPT_LENGTH = 200  # characters
MAX_FULL_PAGE_SIZE = 20  # posts with bodies: 20 of the longest fit a gRPC message
EXPORT_BATCH_SIZE = 50  # posts: at most 10 MB of bodies in memory


class PostState(IntEnum):
    """Who sees a post: a draft its author and admins, a published one every member."""

    DRAFT = 1
    PUBLISHED = 2


@dataclass(frozen=True, slots=True)
class Author:
    """The author of a post, with their current username."""

    id: int
    username: str


@dataclass(frozen=True, slots=True)
class Post:
    """A post with its author and category; `body` is "" where a list omits it.

    `published_at` is when it was first published, None if it never was.
    """

    id: int
    author: Author
    title: str
    body: str
    excerpt: str
    category: Category | None
    state: PostState
    created_at: datetime
    updated_at: datetime
    published_at: datetime | None
    version: int

    @property
    def etag(self) -> str:
        """The etag of this version."""
        return etag_of(self.version)

    @property
    def listed_at(self) -> datetime:
        """The time by which lists filter: of publication, of a draft its creation."""
        if self.state is PostState.PUBLISHED and self.published_at:
            return self.published_at
        return self.created_at


@dataclass(frozen=True, slots=True)
class NewPost:
    """A post to create; `category_id` 0 means none."""

    author_id: int
    title: str
    body: str
    category_id: int
    state: PostState
    created_at: datetime


@dataclass(frozen=True, slots=True)
class PostFilter:
    """Which posts a list holds; 0 and None do not filter.

    `since` (inclusive) and `until` (exclusive) compare `Post.listed_at`. With
    `with_body` the posts have their bodies.
    """

    author_id: int = 0
    category_id: int = 0
    since: datetime | None = None
    until: datetime | None = None
    state: PostState | None = None
    with_body: bool = False


@dataclass(frozen=True, slots=True)
class Reader:
    """Whose drafts a list may hold, beside published posts."""

    user_id: int
    sees_all: bool


class PostStore(Protocol):
    """Stores posts. Deleted ones, and those of deleted accounts, are not found."""

    async def add(
        self, new: NewPost, idempotency: IdempotencyRecord[Post] | None = None
    ) -> Post:
        """Write a post.

        Raises InvalidFields for an unknown category, ResponseExists.
        """

    async def by_id(self, post_id: int) -> Post | None:
        """Return the post with this id, or None."""

    async def edit(
        self,
        post_id: int,
        edit: Edit,
        idempotency: IdempotencyRecord[Post] | None = None,
    ) -> Post:
        """Change a post.

        Raises PostNotFound, EtagMismatch, InvalidFields for an unknown category,
        ResponseExists.
        """

    async def delete(self, post_id: int, etag: str, now: datetime) -> None:
        """Soft-delete a post. Raises PostNotFound, EtagMismatch."""

    async def page(
        self, post_filter: PostFilter, reader: Reader, sort: Sort, request: PageRequest
    ) -> Rows[Post]:
        """Return one page, read with at most three statements."""

    async def after(self, post_id: int, size: int) -> Sequence[Post]:
        """Return the next `size` posts with a greater id, drafts too, in id order."""


WRITABLE = frozenset({"title", "body", "category_id", "state"})
SORT_VALUES: dict[str, Callable[[Post], str]] = {
    "id": lambda post: str(post.id),
    "created_at": lambda post: post.created_at.isoformat(),
    "published_at": lambda post: post.listed_at.isoformat(),
}


@dataclass(frozen=True, slots=True)
class Posts:
    """The rules of posts."""

    store: PostStore
    tokens: PageTokens
    clock: Clock

    async def create(
        self,
        author_id: int,
        title: str,
        body: str,
        category_id: int,
        state: PostState,
        idempotency: IdempotencyRecord[Post] | None = None,
    ) -> Post:
        """Write a post. Raises InvalidFields for an unknown category."""
        now = self.clock()
        new_post = NewPost(author_id, title, body, category_id, state, now)
        return await self.store.add(new_post, idempotency)

    async def get(self, caller: Caller, post_id: int) -> Post:
        """Return a post. Raises PostNotFound, also for another author's draft."""
        post = await self.store.by_id(post_id)
        if post is None or not (
            post.state is PostState.PUBLISHED or _may_write(caller, post)
        ):
            raise PostNotFound(post_id)
        return post

    async def update(
        self,
        caller: Caller,
        post_id: int,
        values: Mapping[str, object],
        etag: str,
        idempotency: IdempotencyRecord[Post] | None = None,
    ) -> Post:
        """Change fields of a post; a non-empty `etag` must be the current one.

        Raises InvalidFields, PostNotFound, AccessDenied, EtagMismatch.
        """
        check_writable("post", values, WRITABLE)
        await self._check_may_write(caller, post_id)
        return await self.store.edit(
            post_id, Edit(values, etag, self.clock()), idempotency
        )

    async def delete(self, caller: Caller, post_id: int, etag: str) -> None:
        """Soft-delete a post. Raises PostNotFound, AccessDenied, EtagMismatch."""
        await self._check_may_write(caller, post_id)
        await self.store.delete(post_id, etag, self.clock())

    async def _check_may_write(self, caller: Caller, post_id: int) -> None:
        """Raise unless the caller may change this post; its author never changes."""
        if not _may_write(caller, await self.get(caller, post_id)):
            raise AccessDenied("only admins may change the post of another user")

    async def list(
        self,
        caller: Caller,
        post_filter: PostFilter,
        sort: Sort,
        page_params: PageParams,
    ) -> Page[Post]:
        """Return one page of the posts that the caller may see.

        Raises InvalidFields for a page that cannot be read.
        """
        if post_filter.with_body and (page_params.size or 0) > MAX_FULL_PAGE_SIZE:
            raise InvalidFields([_FULL_PAGE_TOO_LARGE])
        reader = Reader(caller.user_id, caller.is_admin)

        async def read(request: PageRequest) -> Rows[Post]:
            return await self.store.page(post_filter, reader, sort, request)

        def position_of(post: Post) -> Position:
            return Position(SORT_VALUES[sort.key](post), post.id)

        context = ["posts", caller.subject, post_filter, sort]
        return await paginate(page_params, self.tokens, context, read, position_of)

    async def export(self, after_id: int) -> AsyncGenerator[Post, None]:
        """Yield the posts with a greater id, drafts too, in id order.

        No connection is held between batches, so a slow reader costs none. A post that
        exists during the whole export is yielded exactly once.
        """
        more = True
        while more:
            posts = await self.store.after(after_id, EXPORT_BATCH_SIZE)
            for post in posts:
                after_id = post.id
                yield post
            more = len(posts) == EXPORT_BATCH_SIZE


_FULL_PAGE_TOO_LARGE = Violation(
    "pageSize",
    f"must not exceed {MAX_FULL_PAGE_SIZE} with POST_VIEW_FULL",
    "page_size.whole",
)


def _may_write(caller: Caller, post: Post) -> bool:
    return caller.is_admin or caller.user_id == post.author.id != 0
