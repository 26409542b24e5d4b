"""Who calls: nobody known, or a user with a session."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller. `user_id` is 0 for nobody known; `session_id` is the token's."""

    user_id: int = 0
    session_id: str = ""
    is_admin: bool = False

    @property
    def subject(self) -> str:
        """What this caller is counted and bound by."""
        return f"user:{self.user_id}" if self.user_id else "anonymous"

    def sees_all_of(self, user_id: int) -> bool:
        """Whether this caller may see the private part of that account."""
        return self.is_admin or self.user_id == user_id


ANONYMOUS = Caller()
