"""Exporting every account, in batches."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from server.domain.accounts.users import User

BATCH_SIZE = 500  # accounts


class UserBatchReader(Protocol):
    """Reads accounts in id order."""

    async def after(self, user_id: int, size: int) -> Sequence[User]:
        """Return the next `size` accounts with a greater id."""


@dataclass(frozen=True, slots=True)
class UserExport:
    """Exports every account.

    No connection is held between batches, so a slow reader costs none. An account
    that exists during the whole export is yielded exactly once.
    """

    store: UserBatchReader
    batch_size: int = BATCH_SIZE

    async def stream(self, after_id: int) -> AsyncGenerator[User, None]:
        """Yield the accounts with an id greater than `after_id`, in id order."""
        more = True
        while more:
            users = await self.store.after(after_id, self.batch_size)
            for user in users:
                after_id = user.id
                yield user
            more = len(users) == self.batch_size
