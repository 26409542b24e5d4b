"""AuthService: password resets, verification and changes of e-mail addresses."""

from __future__ import annotations

from blatam.auth.v1 import auth_pb2 as pb
from server.domain.auth.recovery import Recovery
from server.rpc.call import Call


class RecoveryServicer:
    """Implements the RPCs of AuthService that send or take mailed tokens."""

    def __init__(self, recovery: Recovery) -> None:
        self._recovery = recovery

    async def RequestPasswordReset(
        self, request: pb.RequestPasswordResetRequest, call: Call
    ) -> pb.RequestPasswordResetResponse:
        """Send an e-mail with a token, if there is such an account."""
        await self._recovery.request_password_reset(request.identifier)
        return pb.RequestPasswordResetResponse()

    async def ResetPassword(
        self, request: pb.ResetPasswordRequest, call: Call
    ) -> pb.ResetPasswordResponse:
        """Set a new password with a mailed token."""
        call.audit_user_id = await self._recovery.reset_password(
            request.token, request.new_password
        )
        return pb.ResetPasswordResponse()

    async def RequestEmailVerification(
        self, request: pb.RequestEmailVerificationRequest, call: Call
    ) -> pb.RequestEmailVerificationResponse:
        """Send an e-mail with a token to the caller."""
        await self._recovery.request_email_verification(call.caller)
        return pb.RequestEmailVerificationResponse()

    async def VerifyEmail(
        self, request: pb.VerifyEmailRequest, call: Call
    ) -> pb.VerifyEmailResponse:
        """Verify an e-mail address with a mailed token."""
        call.audit_user_id = await self._recovery.verify_email(request.token)
        return pb.VerifyEmailResponse()

    async def ChangeEmail(
        self, request: pb.ChangeEmailRequest, call: Call
    ) -> pb.ChangeEmailResponse:
        """Send an e-mail with a token to a new address."""
        await self._recovery.change_email(
            call.caller,
            request.new_email,
            request.current_password,
            call.account_limits,
        )
        return pb.ChangeEmailResponse()
