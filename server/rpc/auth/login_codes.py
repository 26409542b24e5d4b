"""AuthService: log-ins with codes that are sent by e-mail."""

from __future__ import annotations

from blatam.auth.v1 import auth_pb2, login_code_pb2
from server.domain.auth.log_ins import PendingLogIn
from server.domain.auth.login_codes import LoginCodes
from server.rpc.auth.token_pairs import challenge, client_of, finish
from server.rpc.call import Call


class LoginCodeServicer:
    """Implements the RPCs of AuthService that send or take mailed codes."""

    def __init__(self, login_codes: LoginCodes) -> None:
        self._login_codes = login_codes

    async def RequestLoginCode(
        self, request: login_code_pb2.RequestLoginCodeRequest, call: Call
    ) -> login_code_pb2.RequestLoginCodeResponse:
        """Send an e-mail with a code, if there is such an account."""
        requested = await self._login_codes.request(request.identifier)
        return login_code_pb2.RequestLoginCodeResponse(
            nonce=requested.nonce,
            expires_in=int(requested.expires_in.total_seconds()),
        )

    async def LoginWithCode(
        self, request: login_code_pb2.LoginWithCodeRequest, call: Call
    ) -> auth_pb2.LoginWithCodeResponse:
        """Open a session, or begin the challenge of a second factor."""
        outcome = await self._login_codes.log_in(
            request.nonce, request.code, client_of(call)
        )
        if isinstance(outcome, PendingLogIn):
            return auth_pb2.LoginWithCodeResponse(challenge=challenge(outcome, call))
        authentication = self._login_codes.log_ins.authentication
        pair = await finish(authentication, outcome, request.refresh_token, call)
        return auth_pb2.LoginWithCodeResponse(tokens=pair)
