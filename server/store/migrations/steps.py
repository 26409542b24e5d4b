"""Steps of migrations that run beside the service, on tables of any size.

A migration may be killed after each of its steps and is then run again from its
beginning, so steps must have no effect the second time. Write a migration like this:
first the changes of tables, with if_not_exists, which need a strong lock for a moment;
then batches; then indexes. Each of these functions commits what was done before it.
Without a connection, they print what psql needs to do the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

BATCH_SIZE = 5_000
# psql runs each row of the answer as a statement
_PRINTED_DROP = r"""
SELECT 'DROP INDEX CONCURRENTLY {name}' FROM pg_index
WHERE indexrelid = to_regclass('{name}') AND NOT indisvalid \gexec
"""
_PRINTED_BATCHES = """
DO $batches$
DECLARE
    after_id bigint := 0;
    until_id bigint;
BEGIN
    LOOP
        SELECT max(id) INTO until_id FROM (
            SELECT id FROM {table} WHERE id > after_id ORDER BY id LIMIT {size}
        ) batch;
        EXIT WHEN until_id IS NULL;
        {statement};
        COMMIT;
        after_id := until_id;
    END LOOP;
END $batches$;
"""


def create_index(
    name: str, table: str, columns: Sequence[str | sa.TextClause], **options: Any
) -> None:
    """Create an index while others write to the table.

    An attempt that was interrupted leaves an invalid index, which is replaced.
    """
    with op.get_context().autocommit_block():
        _drop_if_invalid(name, table)
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
    if op.get_context().as_sql:
        _print_batches(statement, table)
        return
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


def _print_batches(statement: str, table: str) -> None:
    named = re.sub(r"(?<!:):(after|until)\b", r"\1_id", statement.strip())
    text = _PRINTED_BATCHES.format(table=table, size=BATCH_SIZE, statement=named)
    with op.get_context().autocommit_block():
        _print(text)


def _drop_if_invalid(name: str, table: str) -> None:
    query = sa.text(
        "select not indisvalid from pg_index where indexrelid = to_regclass(:name)"
    )
    if op.get_context().as_sql:
        _print(_PRINTED_DROP.format(name=name))
    elif op.get_bind().execute(query, {"name": name}).scalar():
        op.drop_index(name, table, postgresql_concurrently=True, if_exists=True)


def _print(text: str) -> None:
    """Write to the script what is no statement of SQLAlchemy."""
    op.get_context().impl.static_output(text.strip())
