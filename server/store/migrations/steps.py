"""Steps of migrations that run beside the service, on tables of any size.

A migration may be killed after each of its steps and is then run again from its
beginning, so steps must have no effect the second time. Write a migration like this:
first the changes of tables, with if_not_exists, which need a strong lock for a moment;
then batches; then indexes. Each of these functions commits what was done before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

BATCH_SIZE = 5_000


def create_index(
    name: str, table: str, columns: Sequence[str | sa.TextClause], **options: Any
) -> None:
    """Create an index while others write to the table.

    An attempt that was interrupted leaves an invalid index, which is replaced.
    """
    with op.get_context().autocommit_block():
        if _is_invalid(name):
            op.drop_index(name, table, postgresql_concurrently=True, if_exists=True)
        op.create_index(
            name,
            table,
            list(columns),
            postgresql_concurrently=True,
            if_not_exists=True,
            **options,
        )


def drop_index(name: str, table: str) -> None:
    """Drop an index while others write to the table."""
    with op.get_context().autocommit_block():
        op.drop_index(name, table, postgresql_concurrently=True, if_exists=True)


def run_in_batches(statement: str, table: str) -> None:
    """Run a statement for ranges of ids of a table, each in its own transaction.

    It has the parameters `after` and `until`, for ids > after and <= until.
    """
    connection = op.get_bind()
    batch_end = sa.text(
        f"select max(id) from (select id from {table} where id > :after"  # noqa: S608
        " order by id limit :size) batch"
    )
    with op.get_context().autocommit_block():
        after = 0
        while True:
            values = {"after": after, "size": BATCH_SIZE}
            until = connection.execute(batch_end, values).scalar_one()
            if until is None:
                return
            connection.execute(sa.text(statement), {"after": after, "until": until})
            after = until


def _is_invalid(name: str) -> bool:
    query = sa.text(
        "select not indisvalid from pg_index where indexrelid = to_regclass(:name)"
    )
    return bool(op.get_bind().execute(query, {"name": name}).scalar())
