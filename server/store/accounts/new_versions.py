"""New versions of accounts, read from the outbox as soon as they are visible.

Entries become visible in another order than that of their ids. A reader that waits
until they are settled would wait for every open transaction, so this one notes the ids
that are missing, and looks for them again until no transaction can commit them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from server.domain.outbox.entries import EventType
from server.store.accounts.user_changes import KINDS
from server.store.connections.connect import Database
from server.store.connections.signals import Signals
from server.store.pool.statement import Statement

ERASED_VERSION = 2**53 - 1  # no account has a greater one; exact as a Lua number
BATCH_SIZE = 5_000
MAX_MISSING = 10_000  # more are awaited, instead of being looked for
# an account that was just created is in no cache
_CHANGED = ", ".join(f"'{kind}'" for kind in KINDS if kind != EventType.USER_CREATED)
_ENTRY = f"""
    select id, case when kind in ({_CHANGED}) then user_id end as user_id,
        case when kind = '{EventType.USER_ERASED}' then {ERASED_VERSION}
            else (payload ->> 'version')::bigint end as version
    from outbox
"""  # noqa: S608 - no values
_ENTRIES = Statement(
    f"""
    select * from ({_ENTRY} where id = any(:missing)) as missing
    union all
    ({_ENTRY} where id > :after order by id limit {BATCH_SIZE})
    """  # noqa: S608 - no values
)


class NewVersion(NamedTuple):
    """An account has this version, or a later one."""

    user_id: int
    version: int


class NewVersions:
    """Reads each new version once; none is skipped, however late it is committed."""

    def __init__(
        self, database: Database, settled: Callable[[], int | None], after: int
    ) -> None:
        """Begin after an entry; `settled` returns the greatest settled id."""
        self._database = database
        self._settled = settled
        self._after = after  # every later id is new; every other one is read or missing
        self._missing: set[int] = set()

    async def read(self, signals: Signals) -> tuple[Sequence[NewVersion], bool]:
        """Return versions that became visible, and whether these are all of them.

        Raises StoreUnavailable.
        """
        settled = self._settled() or 0  # when the signals were read, or before
        versions: list[NewVersion] = []
        more = bool(self._missing) or signals.newest_id > self._after
        while more:
            rows = await self._database.run(
                _ENTRIES, after=self._after, missing=list(self._missing)
            )
            versions += (
                NewVersion(row["user_id"], row["version"])
                for row in rows
                if row["user_id"] is not None
            )
            read = {row["id"] for row in rows}
            more = len(read - self._missing) == BATCH_SIZE
            if not self._note(read, settled):
                return versions, False
        return versions, True

    def _note(self, read: AbstractSet[int], settled: int) -> bool:
        """Note ids as read; return whether the missing ones can be noted, too.

        A settled id that was not read does not exist.
        """
        newest = max(read, default=0)
        missing = {n for n in self._missing - read if n > settled}
        if newest > self._after:
            expected = range(max(self._after, settled) + 1, newest)
            if len(expected) - len(read) > MAX_MISSING:
                return False
            missing.update(n for n in expected if n not in read)
            self._after = newest
        self._missing = missing
        return True
