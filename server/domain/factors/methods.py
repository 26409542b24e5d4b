"""How users are authenticated: factors, methods (RFC 8176), and the level reached."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum, StrEnum


class FactorType(IntEnum):
    """The kinds of second factors; the value is the contract's, and the stored one."""

    TOTP = 1
    PASSKEY = 2
    RECOVERY_CODE = 3


class AuthMethod(StrEnum):
    """A method in the claim `amr`.

    All but FEDERATED are registered (RFC 8176 2). Recovery codes and mailed codes are
    one-time passwords, too.
    """

    PASSWORD = "pwd"  # noqa: S105 - a method's name
    ONE_TIME_CODE = "otp"
    PASSKEY = "hwk"
    USER_VERIFICATION = "user"
    FEDERATED = "fed"
    MULTI_FACTOR = "mfa"


class FactorLevel(IntEnum):
    """How many factors a log-in had; the value is the policy's."""

    ONE = 1
    TWO = 2


# The claim `acr` of each level: the assurance levels of NIST SP 800-63B.
ACR: dict[FactorLevel, str] = {FactorLevel.ONE: "aal1", FactorLevel.TWO: "aal2"}
PASSKEY_METHODS = (
    AuthMethod.PASSKEY,
    AuthMethod.USER_VERIFICATION,
    AuthMethod.MULTI_FACTOR,
)


def level_of(methods: Iterable[str]) -> FactorLevel:
    """Return the level that methods reach."""
    two = AuthMethod.MULTI_FACTOR in methods
    return FactorLevel.TWO if two else FactorLevel.ONE


def merged(methods: Iterable[str], more: Iterable[str]) -> Sequence[str]:
    """Return methods and more methods, each once, in their first order."""
    return tuple(dict.fromkeys(str(method) for method in (*methods, *more)))
