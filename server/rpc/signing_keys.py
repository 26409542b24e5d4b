"""AuthService, the keys that sign access tokens: messages in, messages out."""

from __future__ import annotations

from blatam.auth.v1 import auth_pb2 as pb
from server.domain.credentials.rotation import KeyInfo, SigningKeys
from server.rpc.call import Call


class SigningKeyServicer:
    """blatam.auth.v1.AuthService, as far as it rotates keys."""

    def __init__(self, keys: SigningKeys) -> None:
        self._keys = keys

    async def RotateSigningKey(
        self, request: pb.RotateSigningKeyRequest, call: Call
    ) -> pb.RotateSigningKeyResponse:
        """Have the next key sign."""
        found = await self._keys.rotate(force=request.force)
        return pb.RotateSigningKeyResponse(keys=map(_key, found))


def _key(key: KeyInfo) -> pb.SigningKey:
    state = pb.SigningKeyState.ValueType(key.state)
    shown = pb.SigningKey(kid=key.kid, state=state)
    shown.created_at.FromDatetime(key.created_at)
    return shown
