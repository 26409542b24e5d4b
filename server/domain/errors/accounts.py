"""Errors of accounts."""

from __future__ import annotations

from server.domain.errors.base import AcademyError, ErrorKind


class UserNotFound(AcademyError):
    """The user does not exist."""

    kind = ErrorKind.NOT_FOUND
    reason = "USER_NOT_FOUND"

    def __init__(self, user_id: int) -> None:
        super().__init__(f"user {user_id} not found", metadata={"id": str(user_id)})


class LastAdmin(AcademyError):
    """The change would leave no active admin."""

    kind = ErrorKind.FAILED_PRECONDITION
    reason = "LAST_ADMIN"

    def __init__(self) -> None:
        super().__init__(
            "this is the last active admin: make another user an admin first"
        )


class EmailTaken(AcademyError):
    """Another account has the e-mail address."""

    kind = ErrorKind.ALREADY_EXISTS
    reason = "EMAIL_TAKEN"

    def __init__(self) -> None:
        super().__init__("another account has this e-mail address: use another address")


class UsernameTaken(AcademyError):
    """Another account has the username, ignoring case."""

    kind = ErrorKind.ALREADY_EXISTS
    reason = "USERNAME_TAKEN"

    def __init__(self) -> None:
        super().__init__("another account has this username: choose another username")
