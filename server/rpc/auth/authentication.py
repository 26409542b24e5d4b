"""AuthService: sessions, tokens, service keys and the audit log."""

from __future__ import annotations

from blatam.auth.v1 import auth_pb2 as pb
from blatam.user.v1 import user_pb2
from server.domain.audit import Audit, AuditEvent, AuditFilter
from server.domain.auth.authentication import Authentication
from server.domain.auth.log_ins import LogIns, PendingLogIn
from server.domain.callers import Caller
from server.domain.credentials.service_keys import ServiceKey
from server.domain.credentials.sessions import Session
from server.domain.credentials.tokens import ALGORITHM, KeyRing, SigningKey
from server.domain.errors import RefreshTokenInvalid, TokenInvalid
from server.domain.factors.methods import ACR, FactorLevel
from server.rpc.auth.token_pairs import challenge, client_of, finish, token_pair
from server.rpc.call import Call
from server.rpc.messages.timestamps import datetime_of


class AuthServicer:
    """Implements the RPCs of AuthService on sessions, keys and audit events."""

    def __init__(
        self,
        authentication: Authentication,
        log_ins: LogIns,
        ring: KeyRing,
        audit: Audit,
    ) -> None:
        self._authentication = authentication
        self._log_ins = log_ins
        self._ring = ring
        self._audit = audit

    async def Login(self, request: pb.LoginRequest, call: Call) -> pb.LoginResponse:
        """Open a session, or begin the challenge of a second factor."""
        outcome = await self._log_ins.with_password(
            request.identifier,
            request.password,
            client_of(call),
            call.account_limits,
        )
        if isinstance(outcome, PendingLogIn):
            return pb.LoginResponse(challenge=challenge(outcome, call))
        pair = await finish(self._authentication, outcome, request.refresh_token, call)
        return pb.LoginResponse(tokens=pair)

    async def RefreshToken(
        self, request: pb.RefreshTokenRequest, call: Call
    ) -> pb.RefreshTokenResponse:
        """Return a session's next tokens."""
        tokens = await self._authentication.refresh_tokens(request.refresh_token)
        call.caller = Caller(tokens.user_id, tokens.session_id)  # for the log
        return pb.RefreshTokenResponse(tokens=token_pair(tokens))

    async def Logout(self, request: pb.LogoutRequest, call: Call) -> pb.LogoutResponse:
        """End the caller's session, and the session of the refresh token."""
        caller = call.caller
        if caller.session_id:
            await self._authentication.log_out(caller.session_id)
        if request.refresh_token:
            try:
                owner = await self._authentication.end_session_of(request.refresh_token)
                call.caller = caller if caller.session_id else owner  # for the log
            except RefreshTokenInvalid:
                if not caller.session_id:
                    raise
        return pb.LogoutResponse()

    async def LogoutAll(
        self, request: pb.LogoutAllRequest, call: Call
    ) -> pb.LogoutAllResponse:
        """End every session of the caller."""
        await self._authentication.log_out_everywhere(call.caller.user_id)
        return pb.LogoutAllResponse()

    async def ListSessions(
        self, request: pb.ListSessionsRequest, call: Call
    ) -> pb.ListSessionsResponse:
        """List open sessions."""
        sessions = await self._authentication.list_sessions(
            call.caller, request.user_id
        )
        messages = [_session(session, call.caller) for session in sessions]
        return pb.ListSessionsResponse(sessions=messages)

    async def RevokeSession(
        self, request: pb.RevokeSessionRequest, call: Call
    ) -> pb.RevokeSessionResponse:
        """End one session."""
        await self._authentication.end_session(call.caller, request.id)
        return pb.RevokeSessionResponse()

    async def ChangePassword(
        self, request: pb.ChangePasswordRequest, call: Call
    ) -> pb.ChangePasswordResponse:
        """Change the caller's password."""
        await self._authentication.change_password(
            call.caller,
            request.current_password,
            request.new_password,
            call.account_limits,
            call.idempotency_record(lambda _: pb.ChangePasswordResponse()),
        )
        return pb.ChangePasswordResponse()

    async def VerifyToken(
        self, request: pb.VerifyTokenRequest, call: Call
    ) -> pb.VerifyTokenResponse:
        """Return whether an access token is valid, and its claims."""
        try:
            claims = await self._authentication.introspect(request.token)
        except TokenInvalid:
            return pb.VerifyTokenResponse()
        response = pb.VerifyTokenResponse(
            active=True,
            user_id=claims.user_id,
            session_id=claims.session_id,
            role=user_pb2.Role.ValueType(claims.role),
            acr=ACR[FactorLevel(claims.caller.factor_level)],
            amr=claims.amr,
            actor_id=claims.caller.actor_id,
        )
        response.auth_time.FromSeconds(claims.caller.auth_time)
        response.expires_at.FromDatetime(claims.expires_at)
        return response

    async def CreateServiceKey(
        self, request: pb.CreateServiceKeyRequest, call: Call
    ) -> pb.CreateServiceKeyResponse:
        """Create a key for a service."""
        key, secret = await self._authentication.service_keys.create(
            request.name, request.private_fields, datetime_of(request, "expires_at")
        )
        return pb.CreateServiceKeyResponse(service_key=_service_key(key), secret=secret)

    async def ListServiceKeys(
        self, request: pb.ListServiceKeysRequest, call: Call
    ) -> pb.ListServiceKeysResponse:
        """List the keys of services."""
        keys = await self._authentication.service_keys.list()
        return pb.ListServiceKeysResponse(service_keys=map(_service_key, keys))

    async def RevokeServiceKey(
        self, request: pb.RevokeServiceKeyRequest, call: Call
    ) -> pb.RevokeServiceKeyResponse:
        """Revoke a service's key."""
        await self._authentication.service_keys.revoke(request.id)
        return pb.RevokeServiceKeyResponse()

    async def ListAuditEvents(
        self, request: pb.ListAuditEventsRequest, call: Call
    ) -> pb.ListAuditEventsResponse:
        """List audit events."""
        filters = AuditFilter(
            user_id=request.user_id,
            event=request.event,
            since=datetime_of(request, "since"),
            until=datetime_of(request, "until"),
        )
        size = request.page_size if request.HasField("page_size") else 20
        events, token = await self._audit.list(
            call.caller, filters, size, request.page_token
        )
        return pb.ListAuditEventsResponse(
            items=map(_event, events), has_next=bool(token), next_page_token=token
        )

    async def GetJsonWebKeySet(
        self, request: pb.GetJsonWebKeySetRequest, call: Call
    ) -> pb.GetJsonWebKeySetResponse:
        """Return the keys that verify access tokens."""
        return pb.GetJsonWebKeySetResponse(
            keys=[_key(key) for key in self._ring.keys.values()]
        )


def _session(session: Session, caller: Caller) -> pb.Session:
    message = pb.Session(
        id=session.name,
        device=session.device,
        address=session.address,
        current=session.name == caller.session_id,
        amr=session.amr,
        actor_id=session.actor_id,
    )
    message.created_at.FromDatetime(session.created_at)
    message.last_used_at.FromDatetime(session.last_used_at)
    return message


def _event(event: AuditEvent) -> pb.AuditEvent:
    message = pb.AuditEvent(
        id=event.id,
        event=event.event,
        actor=event.actor,
        user_id=event.user_id,
        address=event.address,
        outcome=event.outcome,
        request_id=event.request_id,
    )
    message.at.FromDatetime(event.at)
    return message


def _service_key(key: ServiceKey) -> pb.ServiceKey:
    message = pb.ServiceKey(id=key.id, name=key.name, private_fields=key.private_fields)
    message.created_at.FromDatetime(key.created_at)
    if key.expires_at:
        message.expires_at.FromDatetime(key.expires_at)
    if key.last_used_at:
        message.last_used_at.FromDatetime(key.last_used_at)
    return message


def _key(key: SigningKey) -> pb.JsonWebKey:
    x, y = key.coordinates()
    return pb.JsonWebKey(
        kty="EC", use="sig", kid=key.kid, alg=ALGORITHM, crv="P-256", x=x, y=y
    )
