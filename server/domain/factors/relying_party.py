"""The relying party of WebAuthn: asks authenticators, and verifies what they sign.

Without I/O. The specification is WebAuthn Level 3, 7.1 and 7.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric import ec
from webauthn import (
    generate_authentication_options,
    generate_registration_options,
    verify_authentication_response,
    verify_registration_response,
)
from webauthn.helpers import (
    decode_credential_public_key,
    decoded_public_key_to_cryptography,
    encode_cbor,
    options_to_json_dict,
)
from webauthn.helpers.cose import COSEAlgorithmIdentifier
from webauthn.helpers.structs import (
    AuthenticatorSelectionCriteria,
    AuthenticatorTransport,
    PublicKeyCredentialDescriptor,
    ResidentKeyRequirement,
    UserVerificationRequirement,
)

from server.domain.factors.authenticator_responses import (
    MAX_CREDENTIAL_ID_BYTES,
    Assertion,
    Creation,
    InvalidResponse,
    checked,
    user_handle,
)
from server.domain.factors.challenges import LIFETIME

ALGORITHMS = [
    COSEAlgorithmIdentifier.EDDSA,
    COSEAlgorithmIdentifier.ECDSA_SHA_256,
    COSEAlgorithmIdentifier.RSASSA_PKCS1_v1_5_SHA_256,  # Windows Hello
]
MAX_PUBLIC_KEY_BYTES = 1024  # RSA of 4096 bits has 530
_DEFAULT_PORTS = {"https": 443, "http": 80}
_TIMEOUT_MS = int(LIFETIME.total_seconds() * 1000)


@dataclass(frozen=True, slots=True)
class Credential:
    """A passkey as a browser looks for it."""

    id: bytes
    transports: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class NewPasskey:
    """What is kept of a new passkey."""

    credential_id: bytes
    public_key: bytes
    sign_count: int
    is_backed_up: bool
    transports: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class AuthenticatorState:
    """What a verified assertion says about its passkey."""

    sign_count: int
    is_backed_up: bool


@dataclass(frozen=True, slots=True)
class RelyingParty:
    """One site; passkeys work at its origin only."""

    id: str
    origin: str
    name: str

    def creation_options(
        self,
        user_id: int,
        username: str,
        challenge: bytes,
        existing: Sequence[Credential],
    ) -> Mapping[str, Any]:
        """Return PublicKeyCredentialCreationOptionsJSON for a discoverable passkey."""
        options = generate_registration_options(
            rp_id=self.id,
            rp_name=self.name,
            user_id=user_handle(user_id),
            user_name=username,
            challenge=challenge,
            timeout=_TIMEOUT_MS,
            authenticator_selection=AuthenticatorSelectionCriteria(
                resident_key=ResidentKeyRequirement.REQUIRED,
                user_verification=UserVerificationRequirement.REQUIRED,
            ),
            exclude_credentials=_descriptors(existing),
            supported_pub_key_algs=ALGORITHMS,
        )
        return options_to_json_dict(options)

    def request_options(
        self, challenge: bytes, allowed: Sequence[Credential] = ()
    ) -> Mapping[str, Any]:
        """Return PublicKeyCredentialRequestOptionsJSON; for any passkey by default."""
        options = generate_authentication_options(
            rp_id=self.id,
            challenge=challenge,
            timeout=_TIMEOUT_MS,
            allow_credentials=_descriptors(allowed),
            user_verification=UserVerificationRequirement.REQUIRED,
        )
        return options_to_json_dict(options)

    def verify_creation(self, creation: Creation) -> NewPasskey:
        """Return what to keep of a new passkey. Raises InvalidResponse.

        The caller has to verify that the challenge is the user's.
        """
        verified = checked(
            lambda: verify_registration_response(
                credential=creation.credential,
                expected_challenge=creation.challenge,
                expected_rp_id=self.id,
                expected_origin=self.origin,
                require_user_verification=True,
                supported_pub_key_algs=ALGORITHMS,
            )
        )
        if len(verified.credential_id) > MAX_CREDENTIAL_ID_BYTES:
            raise InvalidResponse("the credential id is too long")
        if verified.credential_id != creation.credential.raw_id:
            raise InvalidResponse("the credential id is not that of the attested data")
        if len(verified.credential_public_key) > MAX_PUBLIC_KEY_BYTES:
            raise InvalidResponse("the public key is too long")
        checked(lambda: _usable_key(verified.credential_public_key))
        transports = creation.credential.response.transports or ()
        return NewPasskey(
            credential_id=verified.credential_id,
            public_key=verified.credential_public_key,
            sign_count=verified.sign_count,
            is_backed_up=verified.credential_backed_up,
            transports=sorted({transport.value for transport in transports}),
        )

    def verify_assertion(
        self, assertion: Assertion, public_key: bytes | None
    ) -> AuthenticatorState | None:
        """Return the state of the passkey that has signed; None if it has not.

        The caller has to verify that the challenge is pending, and the counter. Takes
        as long without a key, for a passkey that does not exist (R2).
        """
        try:
            verified = checked(
                lambda: verify_authentication_response(
                    credential=assertion.credential,
                    expected_challenge=assertion.challenge,
                    expected_rp_id=self.id,
                    expected_origin=self.origin,
                    credential_public_key=public_key or _DECOY,
                    credential_current_sign_count=0,
                    require_user_verification=True,
                )
            )
        except InvalidResponse:
            return None
        if public_key is None:
            return None
        return AuthenticatorState(
            verified.new_sign_count, verified.credential_backed_up
        )


def relying_party(url: str, name: str) -> RelyingParty | None:
    """Return the relying party of the site at an origin; None if it cannot be one.

    An address without a name, such as http://192.0.2.1, cannot.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if not host or ":" in host or host.rpartition(".")[2].isdigit():
        return None
    origin = f"{parts.scheme}://{host}"  # as browsers write it
    if parts.port and parts.port != _DEFAULT_PORTS[parts.scheme]:
        origin += f":{parts.port}"
    return RelyingParty(host, origin, name)


def _descriptors(
    credentials: Sequence[Credential],
) -> list[PublicKeyCredentialDescriptor]:
    return [
        PublicKeyCredentialDescriptor(
            id=credential.id,
            transports=[AuthenticatorTransport(name) for name in credential.transports],
        )
        for credential in credentials
    ]


def _usable_key(public_key: bytes) -> object:
    """Return a key that can verify; without attestation, nothing was signed by it."""
    return decoded_public_key_to_cryptography(decode_credential_public_key(public_key))


def _new_decoy() -> bytes:
    """Return a public key that nobody has the private one of."""
    numbers = ec.generate_private_key(ec.SECP256R1()).public_key().public_numbers()
    x, y = numbers.x.to_bytes(32, "big"), numbers.y.to_bytes(32, "big")
    return encode_cbor({1: 2, 3: -7, -1: 1, -2: x, -3: y})  # RFC 9053 7.1.1


_DECOY = _new_decoy()
