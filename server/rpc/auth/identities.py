"""AuthService: log-ins with identity providers, and linked identities."""

from __future__ import annotations

from blatam.auth.v1 import auth_pb2, identity_pb2
from server.rpc.call import Call


class IdentityServicer:
    """Implements the RPCs of AuthService on identity providers and identities."""

    async def ListIdentityProviders(
        self, request: identity_pb2.ListIdentityProvidersRequest, call: Call
    ) -> identity_pb2.ListIdentityProvidersResponse:
        """Not implemented yet."""
        raise NotImplementedError

    async def BeginFederatedLogin(
        self, request: identity_pb2.BeginFederatedLoginRequest, call: Call
    ) -> identity_pb2.BeginFederatedLoginResponse:
        """Not implemented yet."""
        raise NotImplementedError

    async def CompleteFederatedLogin(
        self, request: identity_pb2.CompleteFederatedLoginRequest, call: Call
    ) -> auth_pb2.CompleteFederatedLoginResponse:
        """Not implemented yet."""
        raise NotImplementedError

    async def ListIdentities(
        self, request: identity_pb2.ListIdentitiesRequest, call: Call
    ) -> identity_pb2.ListIdentitiesResponse:
        """Not implemented yet."""
        raise NotImplementedError

    async def UnlinkIdentity(
        self, request: identity_pb2.UnlinkIdentityRequest, call: Call
    ) -> identity_pb2.UnlinkIdentityResponse:
        """Not implemented yet."""
        raise NotImplementedError
