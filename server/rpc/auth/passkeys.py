"""AuthService: passkeys, and log-ins without a password."""

from __future__ import annotations

from blatam.auth.v1 import auth_pb2, factor_pb2
from server.rpc.call import Call


class PasskeyServicer:
    """Implements the RPCs of AuthService on passkeys."""

    async def CreatePasskey(
        self, request: factor_pb2.CreatePasskeyRequest, call: Call
    ) -> factor_pb2.CreatePasskeyResponse:
        """Not implemented yet."""
        raise NotImplementedError

    async def ConfirmPasskey(
        self, request: factor_pb2.ConfirmPasskeyRequest, call: Call
    ) -> factor_pb2.ConfirmPasskeyResponse:
        """Not implemented yet."""
        raise NotImplementedError

    async def BeginPasskeyLogin(
        self, request: factor_pb2.BeginPasskeyLoginRequest, call: Call
    ) -> factor_pb2.BeginPasskeyLoginResponse:
        """Not implemented yet."""
        raise NotImplementedError

    async def CompletePasskeyLogin(
        self, request: factor_pb2.CompletePasskeyLoginRequest, call: Call
    ) -> auth_pb2.CompletePasskeyLoginResponse:
        """Not implemented yet."""
        raise NotImplementedError
