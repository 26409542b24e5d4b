"""Errors of second factors, and of calls that need a stronger log-in."""

from __future__ import annotations

from datetime import timedelta

from server.domain.errors.base import AcademyError, ErrorKind
from server.domain.factors.methods import ACR, FactorLevel


class StepUpRequired(AcademyError):
    """The call needs a more recent log-in, or one with two factors (RFC 9470)."""

    kind = ErrorKind.UNAUTHENTICATED
    reason = "STEP_UP_REQUIRED"

    def __init__(
        self, *, second_factor: bool = False, max_age: timedelta | None = None
    ) -> None:
        needs, metadata = [], {}
        if second_factor:
            needs.append("a log-in with a second factor")
            metadata["acr_values"] = ACR[FactorLevel.TWO]
        if max_age is not None:
            seconds = int(max_age.total_seconds())
            needs.append(f"a log-in within the last {seconds} s")
            metadata["max_age"] = str(seconds)
        super().__init__(
            f"this call needs {' and '.join(needs)}: reauthenticate and retry",
            metadata=metadata,
        )


class FactorNotFound(AcademyError):
    """The caller has no such factor; also the error for another user's factor."""

    kind = ErrorKind.NOT_FOUND
    reason = "FACTOR_NOT_FOUND"

    def __init__(self, factor_id: int) -> None:
        super().__init__(
            f"factor {factor_id} not found", metadata={"id": str(factor_id)}
        )


class FactorCodeInvalid(AcademyError):
    """The code does not confirm the new factor."""

    kind = ErrorKind.INVALID_ARGUMENT
    reason = "FACTOR_CODE_INVALID"

    def __init__(self) -> None:
        super().__init__(
            "the code is wrong or was used before: wait for the next code of the "
            "authenticator app, and check the clock of the device"
        )


class TooManyFactors(AcademyError):
    """The account has as many factors, or identities, as an account may have."""

    kind = ErrorKind.FAILED_PRECONDITION
    reason = "TOO_MANY_FACTORS"

    def __init__(self, limit: int, what: str = "factors") -> None:
        super().__init__(f"the account has {limit} {what} already: delete one first")


class LastWayIn(AcademyError):
    """The account could not be logged in to any more."""

    kind = ErrorKind.FAILED_PRECONDITION
    reason = "LAST_WAY_IN"

    def __init__(self) -> None:
        super().__init__(
            "this is the last way to log in to the account: "
            "set a password or add another way first"
        )


class FactorRequired(AcademyError):
    """The account has no second factor, or must not lose its last one."""

    kind = ErrorKind.FAILED_PRECONDITION
    reason = "FACTOR_REQUIRED"


class PasskeysNotConfigured(AcademyError):
    """The address of the site is not known, and so there can be no passkeys."""

    kind = ErrorKind.FAILED_PRECONDITION
    reason = "PASSKEYS_NOT_CONFIGURED"

    def __init__(self) -> None:
        super().__init__(
            "this service has no passkeys: PUBLIC_URL must be set to its origin"
        )


class PasskeyInvalid(AcademyError):
    """The response of an authenticator is not accepted. The cause is in the log."""

    kind = ErrorKind.INVALID_ARGUMENT
    reason = "PASSKEY_INVALID"

    def __init__(self, cause: str) -> None:
        super().__init__(
            "the response is not valid for the options: create the passkey again"
        )
        self.add_note(cause)


class ImpersonationForbidden(AcademyError):
    """An admin who acts as a user may not do this, or nobody may act as the user."""

    kind = ErrorKind.PERMISSION_DENIED
    reason = "IMPERSONATION_FORBIDDEN"
