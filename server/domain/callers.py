"""The caller of an RPC: anonymous, a user with a session, or a service with a key."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller. `user_id` is 0 unless it is a user, `service_id` unless a service.

    `sees_private` is a service's permission to read the private fields of accounts,
    `certificate` the name of its key if a client certificate replaces it.
    """

    user_id: int = 0
    session_id: str = ""
    is_admin: bool = False
    service_id: int = 0
    sees_private: bool = False
    certificate: str = ""

    @property
    def subject(self) -> str:
        """The key under which this caller is counted, audited and bound to tokens."""
        if self.user_id:
            return f"user:{self.user_id}"
        return f"service:{self.service_id}" if self.service_id else "anonymous"

    def sees_all_of(self, user_id: int) -> bool:
        """Return whether this caller may see the private fields of an account."""
        own = self.user_id == user_id != 0
        return own or self.is_admin or self.sees_private


ANONYMOUS = Caller()
# For whom the present call reads and writes; the chain sets it for each signed-in call.
current_caller: ContextVar[Caller] = ContextVar("current_caller", default=ANONYMOUS)
