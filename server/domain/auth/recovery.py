"""Password resets, verification of e-mail addresses, and changes of address."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from server.domain.accounts.users import normalize_identifier
from server.domain.auth.authentication import Authentication
from server.domain.callers import Caller
from server.domain.credentials.mailed_tokens import (
    MailedTokenStore,
    Purpose,
    mailed_digest,
)
from server.domain.credentials.passwords import check_password
from server.domain.errors import InvalidCredentials, MailedTokenInvalid
from server.domain.limits import AccountLimit
from server.domain.outbox.entries import EventType, NewEntry


@dataclass(frozen=True, slots=True)
class Recovery:
    """The rules of mailed tokens, on top of those of sessions."""

    authentication: Authentication
    tokens: MailedTokenStore

    async def request_password_reset(self, identifier: str) -> None:
        """Enqueue an e-mail to the account with this identifier, if there is one.

        No account is looked up here: known and unknown identifiers write the same
        row and take the same time (R3). The outbox worker finds the account.
        """
        await self._mail(
            NewEntry(EventType.PASSWORD_RESET, address=normalize_identifier(identifier))
        )

    async def reset_password(self, token: str, new: str) -> int:
        """Write a new password and end all sessions; return the user's id.

        A password that is refused leaves the token unused. Raises
        MailedTokenInvalid, InvalidFields, Overloaded.
        """
        rules, digest = self.authentication, mailed_digest(token)
        owner = await self.tokens.owner(digest, Purpose.RESET, rules.clock())
        if owner is None:
            raise MailedTokenInvalid
        check_password(
            new, owner.username, rules.policy, "newPassword", email=owner.email
        )
        hashed = await rules.hasher.hash(new)
        await self.tokens.reset_password(digest, hashed, rules.clock())
        return owner.user_id

    async def request_email_verification(self, caller: Caller) -> None:
        """Enqueue an e-mail to the caller's address, unless it is verified."""
        await self._mail(NewEntry(EventType.VERIFICATION, caller.user_id))

    async def verify_email(self, token: str) -> int:
        """Mark the address of a token as its account's verified one; return the user.

        Succeeds again with the same token while that is so. Raises
        MailedTokenInvalid, EmailTaken.
        """
        digest, now = mailed_digest(token), self.authentication.clock()
        return await self.tokens.verify_email(digest, now)

    async def change_email(
        self,
        caller: Caller,
        new_email: str,
        password: str,
        limits: Sequence[AccountLimit],
    ) -> None:
        """Enqueue e-mails to the new and the old address; end the other sessions.

        Does the same if the new address is taken (R3): the outbox worker finds out,
        and warns its owner. Raises InvalidCredentials, Overloaded.
        """
        rules = self.authentication
        account = await rules.accounts.account_by_id(caller.user_id)
        account = await rules.verified(account, caller.subject, password, limits)
        keep = UUID(caller.session_id)
        if not await rules.sessions.request_email_change(
            account, normalize_identifier(new_email), keep, rules.clock()
        ):
            raise InvalidCredentials(account.user_id)

    async def _mail(self, entry: NewEntry) -> None:
        rules = self.authentication
        await rules.email_outbox.add(rules.clock(), entry, audited=True)
