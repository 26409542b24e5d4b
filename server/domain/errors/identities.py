"""Errors of log-ins with identity providers."""

from __future__ import annotations

from server.domain.errors.base import AcademyError, ErrorKind


class IdentityProviderNotFound(AcademyError):
    """No provider with this id is configured."""

    kind = ErrorKind.NOT_FOUND
    reason = "IDENTITY_PROVIDER_NOT_FOUND"

    def __init__(self, provider_id: str) -> None:
        super().__init__(
            f"identity provider {provider_id} not found", metadata={"id": provider_id}
        )


class IdentityProviderUnavailable(AcademyError):
    """The provider does not respond, or not as OpenID Connect demands."""

    kind = ErrorKind.UNAVAILABLE
    reason = "IDENTITY_PROVIDER_UNAVAILABLE"

    def __init__(self, cause: str) -> None:
        super().__init__("the identity provider does not respond: retry later")
        self.add_note(cause)


class FederatedLoginInvalid(AcademyError):
    """The log-in with a provider is not accepted. The cause is in the log only."""

    kind = ErrorKind.UNAUTHENTICATED
    reason = "FEDERATED_LOGIN_INVALID"

    def __init__(self, cause: str) -> None:
        super().__init__(
            "the log-in with the identity provider is invalid or expired: begin again"
        )
        self.add_note(cause)


class IdentityNotLinked(AcademyError):
    """No account is linked to the identity, and none can be created for it."""

    kind = ErrorKind.FAILED_PRECONDITION
    reason = "IDENTITY_NOT_LINKED"

    def __init__(self) -> None:
        super().__init__(
            "no account is linked to this identity: log in to your account in another "
            "way, and link it then"
        )


class IdentityTaken(AcademyError):
    """The identity is linked to another account."""

    kind = ErrorKind.ALREADY_EXISTS
    reason = "IDENTITY_TAKEN"

    def __init__(self) -> None:
        super().__init__("this identity is linked to another account")


class IdentityNotFound(AcademyError):
    """The caller has no such identity."""

    kind = ErrorKind.NOT_FOUND
    reason = "IDENTITY_NOT_FOUND"

    def __init__(self, identity_id: int) -> None:
        super().__init__(
            f"identity {identity_id} not found", metadata={"id": str(identity_id)}
        )
