"""Which tables a role may not read: reads by a replica may have a role of their own."""

from __future__ import annotations

from collections.abc import Sequence

from server.store.pool.reader import Reader
from server.store.pool.statement import Statement
from server.store.tables import metadata

_UNREADABLE = Statement(
    """
    select name
    from unnest(cast(:names as text[])) as name
    where not has_table_privilege(to_regclass(name), 'select')
    order by name
    """
)


async def unreadable_tables(server: Reader) -> Sequence[str]:
    """Return the existing tables of the schema that the role must not SELECT from.

    Raises StoreUnavailable and the driver's errors.
    """
    rows = await server.run(_UNREADABLE, names=[*metadata.tables])
    return [row["name"] for row in rows]
