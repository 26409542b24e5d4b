"""Exporting every account, a chunk at a time."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from server.domain.accounts.users import User

CHUNK = 500


class UserChunks(Protocol):
    """Reads accounts in the order of ids."""

    async def after(self, user_id: int, size: int) -> Sequence[User]:
        """Give the next accounts above an id."""


@dataclass(frozen=True, slots=True)
class UserExport:
    """Gives every account there is.

    Between chunks no connection is held, so that a slow reader costs none. An account
    that is there all the while is given exactly once.
    """

    store: UserChunks
    chunk: int = CHUNK

    async def stream(self, after_id: int) -> AsyncGenerator[User, None]:
        """Give the accounts above an id, in the order of ids."""
        more = True
        while more:
            found = await self.store.after(after_id, self.chunk)
            for user in found:
                after_id = user.id
                yield user
            more = len(found) == self.chunk
