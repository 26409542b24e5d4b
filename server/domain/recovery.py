"""What goes by mail: a new password, and the proof that somebody reads an address."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from server.domain.accounts.users import normalize_identifier
from server.domain.auth import Authentication
from server.domain.callers import Caller
from server.domain.credentials.mailed_tokens import (
    MailedTokenStore,
    Purpose,
    mailed_digest,
)
from server.domain.credentials.passwords import check_password
from server.domain.errors import InvalidCredentials, MailedTokenInvalid
from server.domain.outbox.entries import EventType, NewEntry


@dataclass(frozen=True, slots=True)
class Recovery:
    """The rules of mailed tokens, on top of those of logging in."""

    authentication: Authentication
    tokens: MailedTokenStore

    async def request_password_reset(self, identifier: str) -> None:
        """Have a mail sent to whoever this is, if anybody.

        Nobody is looked up here: known and unknown get the same row and take the
        same time (R3). The worker finds out who it is.
        """
        await self._mail(
            NewEntry(EventType.PASSWORD_RESET, address=normalize_identifier(identifier))
        )

    async def reset_password(self, token: str, new: str) -> int:
        """Put a new password and end all sessions; gives whose.

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
        """Have a mail sent to the caller's address, unless it is verified."""
        await self._mail(NewEntry(EventType.VERIFICATION, caller.user_id))

    async def verify_email(self, token: str) -> int:
        """Take an address as proven; gives whose it is now.

        Raises MailedTokenInvalid, EmailTaken.
        """
        digest, now = mailed_digest(token), self.authentication.clock()
        return await self.tokens.verify_email(digest, now)

    async def change_email(
        self, caller: Caller, new_email: str, password: str, address: str
    ) -> None:
        """Have the new address asked and the old one told; end the other sessions.

        All the same whether the new one is taken (R3): the worker finds out, and
        tells its owner instead. Raises InvalidCredentials, Overloaded.
        """
        rules = self.authentication
        account = await rules.accounts.account_by_id(caller.user_id)
        account = await rules.verified(account, caller.subject, password, address)
        keep = UUID(caller.session_id)
        if not await rules.sessions.ask_email_change(
            account, normalize_identifier(new_email), keep, rules.clock()
        ):
            raise InvalidCredentials(account.user_id)

    async def _mail(self, entry: NewEntry) -> None:
        rules = self.authentication
        await rules.mailing.add(rules.clock(), entry)
