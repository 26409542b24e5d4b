"""AuthService: second factors and recovery codes."""

from __future__ import annotations

from blatam.auth.v1 import factor_pb2 as pb
from server.domain.factors.factors import Factor, Factors
from server.rpc.auth.qr_codes import qr_code
from server.rpc.call import Call


class FactorServicer:
    """Implements the RPCs of AuthService on authenticator apps and all factors."""

    def __init__(self, factors: Factors) -> None:
        self._factors = factors

    async def CreateTotpFactor(
        self, request: pb.CreateTotpFactorRequest, call: Call
    ) -> pb.CreateTotpFactorResponse:
        """Create the secret of an authenticator app."""
        new = await self._factors.create_totp(call.caller, request.name)
        return pb.CreateTotpFactorResponse(
            id=new.id,
            secret=new.secret.base32,
            otpauth_uri=new.secret.uri,
            qr_code_svg=qr_code(new.secret.uri),
        )

    async def ConfirmTotpFactor(
        self, request: pb.ConfirmTotpFactorRequest, call: Call
    ) -> pb.ConfirmTotpFactorResponse:
        """Confirm an authenticator app with its current code."""
        confirmation = await self._factors.confirm_totp(
            call.caller, request.id, request.totp_code
        )
        return pb.ConfirmTotpFactorResponse(
            factor=factor_message(confirmation.factor),
            recovery_codes=confirmation.recovery_codes,
        )

    async def ListFactors(
        self, request: pb.ListFactorsRequest, call: Call
    ) -> pb.ListFactorsResponse:
        """List the confirmed factors of a user."""
        listed = await self._factors.list(call.caller, request.user_id)
        return pb.ListFactorsResponse(
            factors=map(factor_message, listed.factors),
            recovery_codes_left=listed.recovery_codes_left,
        )

    async def DeleteFactor(
        self, request: pb.DeleteFactorRequest, call: Call
    ) -> pb.DeleteFactorResponse:
        """Delete a factor."""
        await self._factors.delete(call.caller, request.id)
        return pb.DeleteFactorResponse()

    async def RegenerateRecoveryCodes(
        self, request: pb.RegenerateRecoveryCodesRequest, call: Call
    ) -> pb.RegenerateRecoveryCodesResponse:
        """Replace the caller's recovery codes."""
        codes = await self._factors.regenerate_codes(call.caller)
        return pb.RegenerateRecoveryCodesResponse(recovery_codes=codes)


def factor_message(factor: Factor) -> pb.Factor:
    """Return the message of a confirmed factor."""
    message = pb.Factor(
        id=factor.id,
        type=pb.FactorType.ValueType(factor.type),
        name=factor.name,
        is_backed_up=factor.is_backed_up,
    )
    message.created_at.FromDatetime(factor.confirmed_at)
    if factor.last_used_at:
        message.last_used_at.FromDatetime(factor.last_used_at)
    return message
