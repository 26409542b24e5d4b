"""Messages of log-ins: the tokens of a session, or the challenge of a second factor."""

from __future__ import annotations

from contextlib import suppress

from google.protobuf.json_format import ParseDict

from blatam.auth.v1 import auth_pb2 as pb
from blatam.auth.v1 import factor_pb2
from server.domain.auth.authentication import Authentication, Tokens
from server.domain.auth.log_ins import PendingLogIn
from server.domain.callers import Caller
from server.domain.errors import RefreshTokenInvalid
from server.domain.factors.challenges import Client
from server.rpc.call import Call

FACTOR_REQUIRED = "FACTOR_REQUIRED"  # the audited outcome of half a log-in
BEARER = "Bearer"


def client_of(call: Call) -> Client:
    """Return the client of a call, to which a challenge is bound."""
    return Client(call.address, call.device)


async def finish(
    authentication: Authentication, tokens: Tokens, old_refresh_token: str, call: Call
) -> pb.TokenPair:
    """Return the tokens of a new session, and end the client's older one."""
    if old_refresh_token:
        with suppress(RefreshTokenInvalid):
            await authentication.end_session_of(old_refresh_token)
    call.caller = Caller(tokens.user_id, tokens.session_id)  # for the log
    return token_pair(tokens)


def token_pair(tokens: Tokens) -> pb.TokenPair:
    """Return the message of a session's tokens."""
    return pb.TokenPair(
        access_token=tokens.access_token,
        token_type=BEARER,
        expires_in=int(tokens.expires_in.total_seconds()),
        refresh_token=tokens.refresh_token,
        refresh_expires_in=int(tokens.refresh_expires_in.total_seconds()),
        session_id=tokens.session_id,
    )


def challenge(pending: PendingLogIn, call: Call) -> factor_pb2.Challenge:
    """Return the message of a log-in that waits for a second factor.

    No session is opened yet, and so the audited outcome is another.
    """
    call.audit_user_id = pending.user_id
    call.audit_outcome = FACTOR_REQUIRED
    message = factor_pb2.Challenge(
        challenge_token=pending.token,
        factors=[factor_pb2.FactorType.ValueType(kind) for kind in pending.factors],
        expires_in=int(pending.expires_in.total_seconds()),
    )
    if pending.passkey_options is not None:
        ParseDict(dict(pending.passkey_options), message.passkey_options)
    return message
