"""Rows to entities by column name, so that no added column shifts a value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import asyncpg
import sqlalchemy as sa

Entity = TypeVar("Entity")


def columns_of(
    entity_type: type[Any], table: sa.FromClause
) -> list[sa.ColumnElement[Any]]:
    """Return the table's columns that are named like the fields of a dataclass."""
    return [table.c[name] for name in _field_names(entity_type)]


def entity_of(
    entity_type: type[Entity],
    row: sa.Row[*tuple[Any, ...]] | asyncpg.Record,
    **values: object,
) -> Entity:
    """Return a dataclass with the row's columns of the same names.

    `values` take precedence over columns. Columns without a field are ignored.
    """
    columns = row._mapping if isinstance(row, sa.Row) else row
    return entity_type(
        **{
            name: values[name] if name in values else columns[name]
            for name in _field_names(entity_type)
        }
    )


def _field_names(entity_type: type[Any]) -> Sequence[str]:
    names: Sequence[str] = entity_type.__match_args__  # faster than fields()
    return names
