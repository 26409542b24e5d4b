"""Who calls: nobody known, a user with a session, or a service with its key."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller. `user_id` and `service_id` are 0 for who is none.

    `sees_private` is a service's right to the private part of accounts.
    """

    user_id: int = 0
    session_id: str = ""
    is_admin: bool = False
    service_id: int = 0
    sees_private: bool = False

    @property
    def subject(self) -> str:
        """What this caller is counted and bound by."""
        if self.user_id:
            return f"user:{self.user_id}"
        return f"service:{self.service_id}" if self.service_id else "anonymous"

    def sees_all_of(self, user_id: int) -> bool:
        """Whether this caller may see the private part of that account."""
        own = self.user_id == user_id != 0
        return own or self.is_admin or self.sees_private


ANONYMOUS = Caller()
