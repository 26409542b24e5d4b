"""AuthService: the second step of a log-in, and reauthentication."""

from __future__ import annotations

from blatam.auth.v1 import auth_pb2, factor_pb2
from server.domain.auth.second_step import Proof, SecondStep
from server.rpc.auth.passkeys import webauthn_json
from server.rpc.auth.token_pairs import BEARER, client_of, finish
from server.rpc.call import Call


class SecondStepServicer:
    """Implements the RPCs of AuthService that verify second factors."""

    def __init__(self, second_step: SecondStep) -> None:
        self._second_step = second_step

    async def CompleteLogin(
        self, request: factor_pb2.CompleteLoginRequest, call: Call
    ) -> auth_pb2.CompleteLoginResponse:
        """Open the session of a log-in that waits for a second factor."""
        proof = Proof(
            totp_code=request.totp_code,
            recovery_code=request.recovery_code,
            passkey=_passkey(request, request.WhichOneof("response")),
        )
        tokens = await self._second_step.complete(
            request.challenge_token, proof, client_of(call)
        )
        authentication = self._second_step.authentication
        pair = await finish(authentication, tokens, request.refresh_token, call)
        return auth_pb2.CompleteLoginResponse(tokens=pair)

    async def Reauthenticate(
        self, request: factor_pb2.ReauthenticateRequest, call: Call
    ) -> factor_pb2.ReauthenticateResponse:
        """Return a new access token of the caller's session."""
        proof = Proof(
            password=request.password,
            totp_code=request.totp_code,
            recovery_code=request.recovery_code,
            passkey=_passkey(request, request.WhichOneof("credential")),
        )
        access = await self._second_step.reauthenticate(
            call.caller, proof, call.account_limits
        )
        return factor_pb2.ReauthenticateResponse(
            access_token=access.token,
            token_type=BEARER,
            expires_in=int(access.expires_in.total_seconds()),
        )


def _passkey(
    request: factor_pb2.CompleteLoginRequest | factor_pb2.ReauthenticateRequest,
    chosen: str | None,
) -> dict[str, object] | None:
    if chosen != "passkey_response":
        return None
    return webauthn_json(request.passkey_response, "passkeyResponse")
