"""Admins who act as users, to see what they see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

from server.domain.accounts.users import Role
from server.domain.auth.authentication import Authentication
from server.domain.callers import Caller
from server.domain.credentials.sessions import Session
from server.domain.credentials.stores import Account
from server.domain.credentials.tokens import LIFETIME
from server.domain.errors import ImpersonationForbidden, UserNotFound


@dataclass(frozen=True, slots=True)
class ImpersonationToken:
    """An access token by which an admin acts as a user; it cannot be refreshed."""

    access_token: str = field(repr=False)
    expires_in: timedelta
    session_id: str


@dataclass(frozen=True, slots=True)
class AdminLogIn:
    """How and when the admin of an impersonation logged in."""

    amr: Sequence[str]
    auth_time: datetime


class ImpersonationStore(Protocol):
    """Stores the sessions of admins who act as users."""

    async def add(
        self, session: Session, version: int, admin_session_id: UUID
    ) -> AdminLogIn | None:
        """Write a session, with how its admin logged in, and inform the user.

        Returns None, and changes nothing, if the user has changed since this version,
        or if the session of the admin has ended.
        """


@dataclass(frozen=True, slots=True)
class Impersonation:
    """The rules of impersonation, on top of those of sessions."""

    authentication: Authentication
    store: ImpersonationStore

    async def begin(self, caller: Caller, user_id: int) -> ImpersonationToken:
        """Return an access token by which the caller, an admin, acts as a user.

        Its session is a row as that of any log-in, so that it can be seen and ended.
        Nobody has a refresh token of it. Raises UserNotFound, also for a disabled user,
        and ImpersonationForbidden.
        """
        rules, now = self.authentication, self.authentication.clock()
        account = await rules.accounts.account_by_id(user_id)
        if account is None or not account.is_active:
            raise UserNotFound(user_id)
        if caller.actor_id or account.role is Role.ADMIN:
            raise ImpersonationForbidden("nobody may act as an admin")
        session = self._session(account, caller.user_id, now)
        log_in = await self.store.add(session, account.version, UUID(caller.session_id))
        if log_in is None:
            raise ImpersonationForbidden(
                "the user or your session has changed: read the user and retry"
            )
        token = rules.access.issue(
            user_id,
            session.name,
            account.role,
            log_in.auth_time,
            log_in.amr,
            actor_id=caller.user_id,
        )
        return ImpersonationToken(token, LIFETIME, session.name)

    def _session(self, account: Account, actor_id: int, now: datetime) -> Session:
        """Return a session without address and device: they are the admin's data."""
        session, _ = self.authentication.refresh.open(account.user_id, "", "", now)
        return replace(session, expires_at=now + LIFETIME, actor_id=actor_id)
