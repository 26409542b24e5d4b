"""Errors of log-ins, tokens, sessions and keys."""

from __future__ import annotations

import math
from datetime import timedelta

from server.domain.errors.base import AcademyError, ErrorKind


class TokenMissing(AcademyError):
    """The call needs an access token and has none."""

    kind = ErrorKind.UNAUTHENTICATED
    reason = "TOKEN_MISSING"

    def __init__(self) -> None:
        super().__init__(
            "this call needs an access token: "
            "send it in the header `authorization: Bearer <token>`"
        )


class TokenInvalid(AcademyError):
    """The access token is not accepted. The cause is in the log only."""

    kind = ErrorKind.UNAUTHENTICATED
    reason = "TOKEN_INVALID"

    def __init__(
        self,
        cause: str,
        message: str = (
            "the access token is invalid or expired: refresh it or log in again"
        ),
    ) -> None:
        super().__init__(message)
        self.add_note(cause)


class KeyUnknown(TokenInvalid):
    """The token was signed with a key that this process does not have."""

    def __init__(self) -> None:
        super().__init__("unknown signing key")


class InvalidCredentials(AcademyError):
    """The error of every failed log-in, whatever the cause (ASVS 6.3.8)."""

    kind = ErrorKind.UNAUTHENTICATED
    reason = "INVALID_CREDENTIALS"

    def __init__(
        self,
        account_id: int = 0,
        message: str = "no active account has this identifier and password",
    ) -> None:
        super().__init__(message)
        self.account_id = account_id  # for the audit log, never for the caller


class RefreshTokenInvalid(AcademyError):
    """The refresh token is not accepted. The cause is in the log only."""

    kind = ErrorKind.UNAUTHENTICATED
    reason = "REFRESH_TOKEN_INVALID"

    def __init__(self, cause: str) -> None:
        super().__init__("the refresh token is invalid or expired: log in again")
        self.add_note(cause)


class MailedTokenInvalid(AcademyError):
    """A token from an e-mail that is unknown, used, expired or superseded."""

    kind = ErrorKind.INVALID_ARGUMENT
    reason = "MAILED_TOKEN_INVALID"

    def __init__(self) -> None:
        super().__init__("the token is invalid or expired: request a new e-mail")


class AccessDenied(AcademyError):
    """The caller is authenticated and has no permission."""

    kind = ErrorKind.PERMISSION_DENIED
    reason = "ACCESS_DENIED"


class UserRequired(AcademyError):
    """A service key called an RPC that acts on the caller's own account."""

    kind = ErrorKind.PERMISSION_DENIED
    reason = "USER_REQUIRED"

    def __init__(self) -> None:
        super().__init__("this call acts on the caller's own account: log in as a user")


class SessionNotFound(AcademyError):
    """The caller has no such session; also the error for another user's session."""

    kind = ErrorKind.NOT_FOUND
    reason = "SESSION_NOT_FOUND"

    def __init__(self, session_id: str) -> None:
        super().__init__(f"session {session_id} not found", metadata={"id": session_id})


class ServiceKeyNotFound(AcademyError):
    """The service key does not exist."""

    kind = ErrorKind.NOT_FOUND
    reason = "SERVICE_KEY_NOT_FOUND"

    def __init__(self, key_id: int) -> None:
        super().__init__(
            f"service key {key_id} not found", metadata={"id": str(key_id)}
        )


class NextKeyTooNew(AcademyError):
    """Some verifiers may not have loaded the next signing key yet."""

    kind = ErrorKind.FAILED_PRECONDITION
    reason = "NEXT_KEY_TOO_NEW"

    def __init__(self, retry_after: timedelta) -> None:
        seconds = math.ceil(retry_after.total_seconds())
        super().__init__(
            "some verifiers may not have loaded the next signing key yet: "
            f"retry in {seconds} s, or rotate with force",
            retry_after=retry_after,
        )
