"""AuthService: log-ins with identity providers, and linked identities."""

from __future__ import annotations

from blatam.auth.v1 import auth_pb2
from blatam.auth.v1 import identity_pb2 as pb
from server.domain.auth.log_ins import PendingLogIn
from server.domain.identities.federated_log_ins import (
    FederatedLogIns,
    RedirectParameters,
)
from server.domain.identities.identities import Identities, Identity
from server.rpc.auth.token_pairs import challenge, client_of, finish
from server.rpc.call import Call
from server.rpc.messages.timestamps import set_timestamp


class IdentityServicer:
    """Implements the RPCs of AuthService on identity providers and identities."""

    def __init__(self, log_ins: FederatedLogIns, identities: Identities) -> None:
        self._log_ins = log_ins
        self._identities = identities

    async def ListIdentityProviders(
        self, request: pb.ListIdentityProvidersRequest, call: Call
    ) -> pb.ListIdentityProvidersResponse:
        """List the configured providers."""
        return pb.ListIdentityProvidersResponse(
            providers=[
                pb.IdentityProvider(id=provider.id, name=provider.name)
                for provider in self._log_ins.providers.values()
            ]
        )

    async def BeginFederatedLogin(
        self, request: pb.BeginFederatedLoginRequest, call: Call
    ) -> pb.BeginFederatedLoginResponse:
        """Return the address of a provider's page."""
        begun = await self._log_ins.begin(request.provider_id)
        return pb.BeginFederatedLoginResponse(
            authorization_url=begun.authorization_url,
            state=begun.state,
            expires_in=int(begun.expires_in.total_seconds()),
            client_nonce=begun.client_nonce,
        )

    async def CompleteFederatedLogin(
        self, request: pb.CompleteFederatedLoginRequest, call: Call
    ) -> auth_pb2.CompleteFederatedLoginResponse:
        """Open a session, or begin the challenge of a second factor."""
        parameters = RedirectParameters(
            request.state, request.code, request.iss, request.client_nonce
        )
        outcome = await self._log_ins.complete(
            parameters, request.access_token, client_of(call)
        )
        if isinstance(outcome, PendingLogIn):
            return auth_pb2.CompleteFederatedLoginResponse(
                challenge=challenge(outcome, call)
            )
        authentication = self._log_ins.log_ins.authentication
        pair = await finish(authentication, outcome, request.refresh_token, call)
        return auth_pb2.CompleteFederatedLoginResponse(tokens=pair)

    async def ListIdentities(
        self, request: pb.ListIdentitiesRequest, call: Call
    ) -> pb.ListIdentitiesResponse:
        """List the identities of the caller."""
        identities = await self._identities.list(call.caller)
        return pb.ListIdentitiesResponse(identities=map(_message, identities))

    async def UnlinkIdentity(
        self, request: pb.UnlinkIdentityRequest, call: Call
    ) -> pb.UnlinkIdentityResponse:
        """Delete an identity of the caller."""
        await self._identities.unlink(call.caller, request.id)
        return pb.UnlinkIdentityResponse()


def _message(identity: Identity) -> pb.Identity:
    message = pb.Identity(
        id=identity.id,
        provider_id=identity.provider,
        issuer=identity.issuer,
        email=identity.email,
    )
    set_timestamp(message.created_at, identity.created_at)
    if identity.last_used_at:
        set_timestamp(message.last_used_at, identity.last_used_at)
    return message
