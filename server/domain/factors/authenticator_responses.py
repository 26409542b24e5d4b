"""What browsers send of authenticators, in the JSON of WebAuthn: read, not trusted.

Without I/O. The relying party verifies what was read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from webauthn.helpers import (
    parse_authentication_credential_json,
    parse_client_data_json,
    parse_registration_credential_json,
)
from webauthn.helpers.structs import AuthenticationCredential, RegistrationCredential

MAX_CREDENTIAL_ID_BYTES = 1023  # WebAuthn 7.1, step 25
_USER_HANDLE_BYTES = 8
_Result = TypeVar("_Result")


class InvalidResponse(Exception):
    """What an authenticator has sent is not accepted."""


@dataclass(frozen=True, slots=True)
class Creation:
    """The response to creation options, not verified yet."""

    challenge: bytes
    credential: RegistrationCredential = field(repr=False)


@dataclass(frozen=True, slots=True)
class Assertion:
    """The response to request options, not verified yet.

    `user_id` is None if the authenticator does not tell, as for a second factor.
    """

    credential_id: bytes
    challenge: bytes
    user_id: int | None
    credential: AuthenticationCredential = field(repr=False)


def read_creation(response: Mapping[str, Any]) -> Creation:
    """Read RegistrationResponseJSON. Raises InvalidResponse."""
    credential = checked(lambda: parse_registration_credential_json(dict(response)))
    return Creation(_challenge(credential.response.client_data_json), credential)


def read_assertion(response: Mapping[str, Any]) -> Assertion:
    """Read AuthenticationResponseJSON. Raises InvalidResponse."""
    credential = checked(lambda: parse_authentication_credential_json(dict(response)))
    if len(credential.raw_id) > MAX_CREDENTIAL_ID_BYTES:
        raise InvalidResponse("the credential id is too long")
    return Assertion(
        credential_id=credential.raw_id,
        challenge=_challenge(credential.response.client_data_json),
        user_id=_user_id(credential.response.user_handle),
        credential=credential,
    )


def user_handle(user_id: int) -> bytes:
    """Return what a passkey tells of its user: nothing personal, and never changed."""
    return user_id.to_bytes(_USER_HANDLE_BYTES, "big")


def checked(call: Callable[[], _Result]) -> _Result:
    """Return the result of the library. Raises InvalidResponse.

    Its decoders let errors of any type through, such as those of points that are not
    on the curve. Accepted cost: a fault of ours in here looks like a bad response.
    """
    try:
        return call()
    except Exception as error:
        raise InvalidResponse(f"{type(error).__name__}: {error}"[:200]) from error


def _challenge(client_data: bytes) -> bytes:
    read = checked(lambda: parse_client_data_json(client_data))
    if read.cross_origin:
        raise InvalidResponse("the page was in a frame of another origin")
    return read.challenge


def _user_id(handle: bytes | None) -> int | None:
    """Return the user of a handle, 0 for one that was never given."""
    if not handle:
        return None
    return int.from_bytes(handle, "big") if len(handle) == _USER_HANDLE_BYTES else 0
