"""The caller of an RPC: anonymous, a user with a session, or a service with a key."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller. `user_id` is 0 unless it is a user, `service_id` unless a service.

    `sees_private` is a service's permission to read the private fields of accounts,
    `certificate` the name of its key if a client certificate replaces it.

    Of a user: `auth_time` is when they last logged in or reauthenticated, in seconds
    since 1970, `factor_level` how many factors that had, and `actor_id` the admin who
    acts as them, or 0.
    """

    user_id: int = 0
    session_id: str = ""
    is_admin: bool = False
    service_id: int = 0
    sees_private: bool = False
    certificate: str = ""
    role: int = 0
    auth_time: int = 0
    factor_level: int = 0
    actor_id: int = 0

    @property
    def subject(self) -> str:
        """The key under which this caller is counted and bound to tokens."""
        if self.user_id:
            return f"user:{self.user_id}"
        return f"service:{self.service_id}" if self.service_id else "anonymous"

    @property
    def actor(self) -> str:
        """The subject who makes the call: an admin who acts as a user, not the user."""
        return f"user:{self.actor_id}" if self.actor_id else self.subject

    def sees_all_of(self, user_id: int) -> bool:
        """Return whether this caller may see the private fields of an account."""
        own = self.user_id == user_id != 0
        return own or self.is_admin or self.sees_private


ANONYMOUS = Caller()
# For whom the present call reads and writes; the chain sets it for each signed-in call.
current_caller: ContextVar[Caller] = ContextVar("current_caller", default=ANONYMOUS)
