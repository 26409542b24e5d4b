"""AuthService: admins who act as users."""

from __future__ import annotations

from blatam.auth.v1 import auth_pb2
from server.rpc.call import Call


class ImpersonationServicer:
    """Implements the RPC of AuthService by which admins act as users."""

    async def ImpersonateUser(
        self, request: auth_pb2.ImpersonateUserRequest, call: Call
    ) -> auth_pb2.ImpersonateUserResponse:
        """Not implemented yet."""
        raise NotImplementedError
