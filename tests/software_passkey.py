"""A browser with an authenticator that holds one passkey, in software.

It follows WebAuthn and not the service: what it sends can be made wrong in any part.
"""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from secrets import token_bytes
from typing import Any

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

ES256, EDDSA, RS256 = -7, -8, -257
USER_PRESENT, USER_VERIFIED, CAN_BACK_UP, BACKED_UP, ATTESTED = 1, 4, 8, 16, 64
ORIGIN = "http://localhost:8080"
Json = dict[str, Any]
Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


def encode(raw: bytes) -> str:
    return urlsafe_b64encode(raw).decode().rstrip("=")


def decode(text: str) -> bytes:
    return urlsafe_b64decode(text + "==")


@dataclass
class SoftwarePasskey:
    """`step` is what each use adds to the counter; 0 for a passkey without one."""

    algorithm: int = ES256
    origin: str = ORIGIN
    rp_id: str = ""  # that of the options
    flags: int = USER_PRESENT | USER_VERIFIED
    sign_count: int = 0
    step: int = 1
    is_framed: bool = False
    credential_id: bytes = field(default_factory=lambda: token_bytes(32))
    user_handle: bytes = b""
    more_key: dict[int, object] = field(default_factory=dict)  # in the public key

    key: Key | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._key: Key = self.key or _new_key(self.algorithm)

    def changed(self, **changes: Any) -> "SoftwarePasskey":
        """Return a copy with the same key."""
        return replace(self, key=self._key, **changes)

    def create(self, options: Mapping[str, Any]) -> Json:
        """Return the JSON of navigator.credentials.create()."""
        assert options["authenticatorSelection"]["residentKey"] == "required"
        assert options["authenticatorSelection"]["userVerification"] == "required"
        assert options["attestation"] == "none"
        self.user_handle = decode(options["user"]["id"])
        length = len(self.credential_id).to_bytes(2, "big")
        attested = (
            bytes(16)
            + length
            + self.credential_id
            + cbor2.dumps(self.cose() | self.more_key)
        )
        data = self._authenticator_data(options["rp"]["id"], ATTESTED) + attested
        statement = {"fmt": "none", "attStmt": {}, "authData": data}
        response = {
            "clientDataJSON": encode(self._client_data("webauthn.create", options)),
            "attestationObject": encode(cbor2.dumps(statement)),
            "transports": ["internal", "hybrid", "telepathy"],
        }
        return self._credential(response)

    def get(self, options: Mapping[str, Any]) -> Json:
        """Return the JSON of navigator.credentials.get()."""
        assert options["userVerification"] == "required"
        allowed = [decode(item["id"]) for item in options.get("allowCredentials", [])]
        assert not allowed or self.credential_id in allowed
        self.sign_count += self.step
        data = self._authenticator_data(options["rpId"], 0)
        client_data = self._client_data("webauthn.get", options)
        response = {
            "clientDataJSON": encode(client_data),
            "authenticatorData": encode(data),
            "signature": encode(self._sign(data + sha256(client_data).digest())),
            "userHandle": encode(self.user_handle),
        }
        return self._credential(response)

    def cose(self) -> dict[int, object]:
        """Return the public key (RFC 9052 7)."""
        if isinstance(self._key, ed25519.Ed25519PrivateKey):
            raw = self._key.public_key().public_bytes_raw()
            return {1: 1, 3: self.algorithm, -1: 6, -2: raw}
        numbers = self._key.public_key().public_numbers()
        if isinstance(numbers, rsa.RSAPublicNumbers):
            n, e = numbers.n.to_bytes(256, "big"), numbers.e.to_bytes(3, "big")
            return {1: 3, 3: self.algorithm, -1: n, -2: e}
        x, y = numbers.x.to_bytes(32, "big"), numbers.y.to_bytes(32, "big")
        return {1: 2, 3: self.algorithm, -1: 1, -2: x, -3: y}

    def _sign(self, data: bytes) -> bytes:
        if isinstance(self._key, ed25519.Ed25519PrivateKey):
            return self._key.sign(data)
        if isinstance(self._key, rsa.RSAPrivateKey):
            return self._key.sign(data, padding.PKCS1v15(), hashes.SHA256())
        return self._key.sign(data, ec.ECDSA(hashes.SHA256()))

    def _authenticator_data(self, rp_id: str, more_flags: int) -> bytes:
        rp_id_hash = sha256((self.rp_id or rp_id).encode()).digest()
        flags = bytes([self.flags | more_flags])
        return rp_id_hash + flags + self.sign_count.to_bytes(4, "big")

    def _client_data(self, kind: str, options: Mapping[str, Any]) -> bytes:
        client_data = {
            "type": kind,
            "challenge": options["challenge"],
            "origin": self.origin,
            "crossOrigin": self.is_framed,
        }
        return json.dumps(client_data).encode()

    def _credential(self, response: Json) -> Json:
        credential_id = encode(self.credential_id)
        return {
            "id": credential_id,
            "rawId": credential_id,
            "type": "public-key",
            "authenticatorAttachment": "platform",
            "clientExtensionResults": {},
            "response": response,
        }


def _new_key(algorithm: int) -> Key:
    if algorithm == EDDSA:
        return ed25519.Ed25519PrivateKey.generate()
    if algorithm == RS256:
        return rsa.generate_private_key(65537, 2048)
    return ec.generate_private_key(ec.SECP256R1())
