"""AuthService: passkeys, and log-ins without a password."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Struct

from blatam.auth.v1 import auth_pb2, factor_pb2
from server.domain.auth.passkey_login import PasskeyLogIn
from server.domain.errors import InvalidFields, PasskeysNotConfigured, Violation
from server.domain.factors.passkeys import PasskeyCreation
from server.rpc.auth.factors import factor_message
from server.rpc.auth.token_pairs import client_of, finish
from server.rpc.call import Call

KIB = 1024
MAX_RESPONSE_BYTES = 16 * KIB


@dataclass(frozen=True, slots=True)
class Passkeys:
    """The rules of passkeys at a site."""

    creation: PasskeyCreation
    log_in: PasskeyLogIn


class PasskeyServicer:
    """Implements the RPCs of AuthService on passkeys; None if there is no site."""

    def __init__(self, passkeys: Passkeys | None) -> None:
        self._configured = passkeys

    async def CreatePasskey(
        self, request: factor_pb2.CreatePasskeyRequest, call: Call
    ) -> factor_pb2.CreatePasskeyResponse:
        """Return the options with which a browser creates a passkey."""
        new = await self._passkeys.creation.create(call.caller, request.name)
        return factor_pb2.CreatePasskeyResponse(id=new.id, options=_struct(new.options))

    async def ConfirmPasskey(
        self, request: factor_pb2.ConfirmPasskeyRequest, call: Call
    ) -> factor_pb2.ConfirmPasskeyResponse:
        """Confirm a passkey with the response of its authenticator."""
        response = webauthn_json(request.response, "response")
        confirmation = await self._passkeys.creation.confirm(
            call.caller, request.id, response
        )
        return factor_pb2.ConfirmPasskeyResponse(
            factor=factor_message(confirmation.factor),
            recovery_codes=confirmation.recovery_codes,
        )

    async def BeginPasskeyLogin(
        self, request: factor_pb2.BeginPasskeyLoginRequest, call: Call
    ) -> factor_pb2.BeginPasskeyLoginResponse:
        """Return the options with which a browser asks for a passkey."""
        options = await self._passkeys.log_in.begin()
        return factor_pb2.BeginPasskeyLoginResponse(options=_struct(options))

    async def CompletePasskeyLogin(
        self, request: factor_pb2.CompletePasskeyLoginRequest, call: Call
    ) -> auth_pb2.CompletePasskeyLoginResponse:
        """Open a session of the user whose passkey has signed."""
        log_in = self._passkeys.log_in
        response = webauthn_json(request.response, "response")
        tokens = await log_in.complete(response, client_of(call))
        pair = await finish(log_in.authentication, tokens, request.refresh_token, call)
        return auth_pb2.CompletePasskeyLoginResponse(tokens=pair)

    @property
    def _passkeys(self) -> Passkeys:
        if self._configured is None:
            raise PasskeysNotConfigured
        return self._configured


def webauthn_json(response: Struct, field: str) -> dict[str, Any]:
    """Return what a browser has sent of an authenticator.

    Raises InvalidFields for one that is too large: rules of the contract cannot state
    the size of a message.
    """
    if response.ByteSize() > MAX_RESPONSE_BYTES:
        rule = f"must be at most {MAX_RESPONSE_BYTES // KIB} KiB"
        raise InvalidFields([Violation(field, rule, "passkey.max_bytes")])
    return MessageToDict(response)


def _struct(options: Mapping[str, Any]) -> Struct:
    return ParseDict(dict(options), Struct())
