"""AuthService: log-ins with codes that are sent by e-mail."""

from __future__ import annotations

from blatam.auth.v1 import auth_pb2, login_code_pb2
from server.rpc.call import Call


class LoginCodeServicer:
    """Implements the RPCs of AuthService that send or take mailed codes."""

    async def RequestLoginCode(
        self, request: login_code_pb2.RequestLoginCodeRequest, call: Call
    ) -> login_code_pb2.RequestLoginCodeResponse:
        """Not implemented yet."""
        raise NotImplementedError

    async def LoginWithCode(
        self, request: login_code_pb2.LoginWithCodeRequest, call: Call
    ) -> auth_pb2.LoginWithCodeResponse:
        """Not implemented yet."""
        raise NotImplementedError
