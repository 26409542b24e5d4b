"""AuthService: admins who act as users."""

from __future__ import annotations

from blatam.auth.v1 import auth_pb2
from server.domain.auth.impersonation import Impersonation
from server.rpc.auth.token_pairs import BEARER
from server.rpc.call import Call


class ImpersonationServicer:
    """Implements the RPC of AuthService by which admins act as users."""

    def __init__(self, impersonation: Impersonation) -> None:
        self._impersonation = impersonation

    async def ImpersonateUser(
        self, request: auth_pb2.ImpersonateUserRequest, call: Call
    ) -> auth_pb2.ImpersonateUserResponse:
        """Return an access token by which the caller acts as a user."""
        call.audit_user_id = request.id
        token = await self._impersonation.begin(call.caller, request.id)
        return auth_pb2.ImpersonateUserResponse(
            access_token=token.access_token,
            token_type=BEARER,
            expires_in=int(token.expires_in.total_seconds()),
            session_id=token.session_id,
        )
