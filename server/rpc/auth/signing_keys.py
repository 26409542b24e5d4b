"""AuthService: rotation of the keys that sign access tokens."""

from __future__ import annotations

from blatam.auth.v1 import auth_pb2 as pb
from server.domain.credentials.rotation import KeyInfo, SigningKeys
from server.rpc.call import Call


class SigningKeyServicer:
    """Implements the RPC of AuthService that rotates keys."""

    def __init__(self, keys: SigningKeys) -> None:
        self._keys = keys

    async def RotateSigningKey(
        self, request: pb.RotateSigningKeyRequest, call: Call
    ) -> pb.RotateSigningKeyResponse:
        """Make the next key the active one."""
        keys = await self._keys.rotate(force=request.force)
        return pb.RotateSigningKeyResponse(keys=map(_key, keys))


def _key(key: KeyInfo) -> pb.SigningKey:
    state = pb.SigningKeyState.ValueType(key.state)
    message = pb.SigningKey(kid=key.kid, state=state)
    message.created_at.FromDatetime(key.created_at)
    return message
