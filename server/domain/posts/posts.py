"""Posts: writing, reading and listing them, and who may do what with whose."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Protocol

from server.domain.callers import Caller
from server.domain.clock import Clock
from server.domain.edits import Edit, check_writable, etag
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

EXCERPT = 200  # characters
MOST_WHOLE = 20  # to a page: 20 of the longest bodies fit into one gRPC message

CHUNK = 50  # of an export: at most 10 MB of bodies are held


class State(IntEnum):
    """Who sees a post: its author and admins, or every member."""

    DRAFT = 1
    PUBLISHED = 2


@dataclass(frozen=True, slots=True)
class Author:
    """Who wrote a post, by the name of now."""

    id: int
    username: str


@dataclass(frozen=True, slots=True)
class Post:
    """A post with what belongs to it; `body` is "" where a list leaves it out."""

    id: int
    author: Author
    title: str
    body: str
    excerpt: str
    category: Category | None
    state: State
    created_at: datetime
    updated_at: datetime
    version: int

    @property
    def etag(self) -> str:
        """The version as callers write it."""
        return etag(self.version)


@dataclass(frozen=True, slots=True)
class NewPost:
    """What an author writes; `category_id` 0 is none."""

    author_id: int
    title: str
    body: str
    category_id: int
    state: State
    created_at: datetime


@dataclass(frozen=True, slots=True)
class PostFilter:
    """Which posts a listing holds; 0 and None let everything through.

    `until` is excluded. With `whole` the bodies come along.
    """

    author_id: int = 0
    category_id: int = 0
    since: datetime | None = None
    until: datetime | None = None
    state: State | None = None
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Reader:
    """Whose drafts a listing may hold besides what is published."""

    user_id: int
    sees_all: bool


class PostStore(Protocol):
    """Keeps posts; the deleted, and those of deleted accounts, are not among them."""

    async def add(
        self, new: NewPost, idempotency: IdempotencyRecord[Post] | None = None
    ) -> Post:
        """Write a post.

        Raises InvalidFields if there is no such category, AnswerExists.
        """

    async def by_id(self, post_id: int) -> Post | None:
        """Give the post with this id."""

    async def edit(
        self,
        post_id: int,
        edit: Edit,
        idempotency: IdempotencyRecord[Post] | None = None,
    ) -> Post:
        """Change a post.

        Raises PostNotFound, EtagMismatch, InvalidFields if there is no such category,
        AnswerExists.
        """

    async def delete(self, post_id: int, known: str, now: datetime) -> None:
        """Delete a post softly. Raises PostNotFound, EtagMismatch."""

    async def page(
        self, wanted: PostFilter, reader: Reader, sort: Sort, request: PageRequest
    ) -> Rows[Post]:
        """Give one page, by at most three statements."""

    async def after(self, post_id: int, size: int) -> Sequence[Post]:
        """Give the next posts above an id, drafts too, in the order of ids."""


WRITABLE = frozenset({"title", "body", "category_id", "state"})
SORT_VALUES: dict[str, Callable[[Post], str]] = {
    "id": lambda post: str(post.id),
    "created_at": lambda post: post.created_at.isoformat(),
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
        state: State,
        idempotency: IdempotencyRecord[Post] | None = None,
    ) -> Post:
        """Write a post. Raises InvalidFields if there is no such category."""
        now = self.clock()
        new = NewPost(author_id, title, body, category_id, state, now)
        return await self.store.add(new, idempotency)

    async def get(self, caller: Caller, post_id: int) -> Post:
        """Give a post; PostNotFound for somebody else's draft."""
        post = await self.store.by_id(post_id)
        if post is None or not (post.state is State.PUBLISHED or _writes(caller, post)):
            raise PostNotFound(post_id)
        return post

    async def update(
        self,
        caller: Caller,
        post_id: int,
        values: Mapping[str, object],
        known: str,
        idempotency: IdempotencyRecord[Post] | None = None,
    ) -> Post:
        """Change fields of a post; `known` is the etag that must hold, if any.

        Raises InvalidFields, PostNotFound, AccessDenied, EtagMismatch.
        """
        check_writable("post", values, WRITABLE)
        await self._own(caller, post_id)
        return await self.store.edit(
            post_id, Edit(values, known, self.clock()), idempotency
        )

    async def delete(self, caller: Caller, post_id: int, known: str) -> None:
        """Delete a post softly. Raises PostNotFound, AccessDenied, EtagMismatch."""
        await self._own(caller, post_id)
        await self.store.delete(post_id, known, self.clock())

    async def _own(self, caller: Caller, post_id: int) -> None:
        """Raise unless the caller writes this post; its author never changes."""
        if not _writes(caller, await self.get(caller, post_id)):
            raise AccessDenied("only its author and admins may change a post")

    async def list(
        self, caller: Caller, wanted: PostFilter, sort: Sort, page_params: PageParams
    ) -> Page[Post]:
        """Give one page of what the caller may see.

        Raises InvalidFields for a page that there cannot be.
        """
        if wanted.whole and (page_params.size or 0) > MOST_WHOLE:
            raise InvalidFields([_TOO_MANY_WHOLE])
        reader = Reader(caller.user_id, caller.is_admin)

        async def read(request: PageRequest) -> Rows[Post]:
            return await self.store.page(wanted, reader, sort, request)

        def end(last: Post) -> Position:
            return Position(SORT_VALUES[sort.key](last), last.id)

        context = ["posts", caller.subject, wanted, sort]
        return await paginate(page_params, self.tokens, context, read, end)

    async def export(self, after_id: int) -> AsyncGenerator[Post, None]:
        """Give the posts above an id, drafts too, in the order of ids.

        Between chunks no connection is held, so that a slow reader costs none. A post
        that is there all the while is given exactly once.
        """
        more = True
        while more:
            found = await self.store.after(after_id, CHUNK)
            for post in found:
                after_id = post.id
                yield post
            more = len(found) == CHUNK


_TOO_MANY_WHOLE = Violation(
    "pageSize",
    f"must not be above {MOST_WHOLE} with POST_VIEW_FULL",
    "page_size.whole",
)


def _writes(caller: Caller, post: Post) -> bool:
    return caller.is_admin or caller.user_id == post.author.id != 0
