"""Errors of profiles and follows."""

from __future__ import annotations

from server.domain.errors.base import AcademyError, ErrorKind, Violation


class ProfileNotFound(AcademyError):
    """The profile does not exist, or is private."""

    kind = ErrorKind.NOT_FOUND
    reason = "PROFILE_NOT_FOUND"

    def __init__(self, user_id: int) -> None:
        super().__init__(
            f"profile of user {user_id} not found", metadata={"id": str(user_id)}
        )


class ProfileExists(AcademyError):
    """The account already has a profile."""

    kind = ErrorKind.ALREADY_EXISTS
    reason = "PROFILE_EXISTS"

    def __init__(self, user_id: int) -> None:
        super().__init__(
            f"user {user_id} already has a profile: update that profile",
            metadata={"id": str(user_id)},
        )


class SelfFollow(AcademyError):
    """The caller tried to follow themselves."""

    kind = ErrorKind.INVALID_ARGUMENT
    reason = "SELF_FOLLOW"

    def __init__(self) -> None:
        super().__init__("id: you cannot follow yourself")
        self.violations = (Violation("id", "must not be your own id", "id.self"),)
