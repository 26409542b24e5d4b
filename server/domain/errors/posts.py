"""Errors of posts and categories."""

from __future__ import annotations

from server.domain.errors.base import AcademyError, ErrorKind


class PostNotFound(AcademyError):
    """The post does not exist, or is a draft of another author."""

    kind = ErrorKind.NOT_FOUND
    reason = "POST_NOT_FOUND"

    def __init__(self, post_id: int) -> None:
        super().__init__(f"post {post_id} not found", metadata={"id": str(post_id)})


class CategoryNotFound(AcademyError):
    """The category does not exist."""

    kind = ErrorKind.NOT_FOUND
    reason = "CATEGORY_NOT_FOUND"

    def __init__(self, category_id: int) -> None:
        super().__init__(
            f"category {category_id} not found", metadata={"id": str(category_id)}
        )


class SlugTaken(AcademyError):
    """Another category has the slug."""

    kind = ErrorKind.ALREADY_EXISTS
    reason = "SLUG_TAKEN"

    def __init__(self) -> None:
        super().__init__("another category has this slug: choose another slug")


class CategoryInUse(AcademyError):
    """The category contains posts."""

    kind = ErrorKind.FAILED_PRECONDITION
    reason = "CATEGORY_IN_USE"

    def __init__(self, category_id: int) -> None:
        super().__init__(
            f"category {category_id} contains posts: "
            "move the posts to another category first",
            metadata={"id": str(category_id)},
        )
