"""Log-ins with codes that are sent by e-mail."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

from server.domain.accounts.users import normalize_identifier
from server.domain.auth.authentication import Tokens
from server.domain.auth.log_ins import LogIns, PendingLogIn
from server.domain.errors import InvalidCredentials
from server.domain.factors.challenges import ChallengeKind, Client, id_of
from server.domain.factors.login_codes import CHALLENGE, LIFETIME, LoginCodeMacs
from server.domain.factors.methods import AuthMethod
from server.domain.outbox.entries import EventType, NewEntry


@dataclass(frozen=True, slots=True)
class RequestedCode:
    """What the client keeps of its request: without it, the code is of no use."""

    nonce: str = field(repr=False)
    expires_in: timedelta


@dataclass(frozen=True, slots=True)
class LoginCodes:
    """The rules of mailed codes, on top of those of log-ins."""

    log_ins: LogIns
    macs: LoginCodeMacs

    async def request(self, identifier: str) -> RequestedCode:
        """Enqueue an e-mail with a code to the account, if there is one.

        No account is looked up here: known and unknown identifiers write the same rows
        and take the same time (R3). The outbox worker finds the account.
        """
        nonce = await self.log_ins.challenges.begin(
            ChallengeKind.LOGIN_CODE, lifetime=LIFETIME
        )
        entry = NewEntry(
            EventType.LOGIN_CODE,
            address=normalize_identifier(identifier),
            payload={CHALLENGE: id_of(nonce).hex},
        )
        rules = self.log_ins.authentication
        await rules.email_outbox.add(rules.clock(), entry, audited=True)
        return RequestedCode(nonce, LIFETIME)

    async def log_in(
        self, nonce: str, code: str, client: Client
    ) -> Tokens | PendingLogIn:
        """Log a user in with a code, which is one factor.

        The attempt is counted before the code is verified. A code for an address
        without an account takes as long as a wrong one. The address is not verified by
        it: see docs/decisions/mailed-codes.md. Raises InvalidCredentials, whatever the
        cause.
        """
        rules, challenges = self.log_ins.authentication, self.log_ins.challenges
        challenge = await challenges.attempt(ChallengeKind.LOGIN_CODE, nonce)
        if challenge is None:
            raise _refusal(0)
        account = await rules.accounts.account_by_id(challenge.user_id)
        matches = self.macs.matches(challenge, code)
        is_valid = (
            account and account.is_active and account.version == challenge.version
        )
        if account is None or not (matches and is_valid):
            raise _refusal(challenge.user_id)
        outcome = None
        if await challenges.consume(challenge):
            amr = (AuthMethod.ONE_TIME_CODE,)
            outcome = await self.log_ins.proceed(account, client, amr)
        if outcome is None:
            raise _refusal(account.user_id)
        return outcome


def _refusal(user_id: int) -> InvalidCredentials:
    return InvalidCredentials(
        user_id, "the code is wrong, expired or used: request a new code"
    )
