"""One JSON document, written in bounded parts while its rows are read.

The concatenated parts are `{"<section>": [<row>, ...], ...}`. Each part belongs to one
section: it is the whole section, or a slice of it that may end anywhere in the text.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from server.domain.accounts.personal_data import ExportBatch
from server.domain.edits import json_name


@dataclass(frozen=True, slots=True)
class DocumentPart:
    """Some bytes of the document, and the section that they belong to."""

    section: str
    data: bytes


async def document_parts(
    batches: AsyncGenerator[ExportBatch, None], max_bytes: int
) -> AsyncGenerator[DocumentPart, None]:
    """Yield the document's parts, each of at most `max_bytes`; closes `batches`.

    The document is closed only after the last batch: what an error cuts off is not
    valid JSON.
    """
    writer = _Writer(max_bytes)
    async with aclosing(batches):
        async for batch in batches:
            for part in writer.add(batch):
                yield part
    for part in writer.end():
        yield part


class _Writer:
    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._section = ""
        self._has_rows = False
        self._buffer = bytearray(b"{")

    def add(self, batch: ExportBatch) -> Iterator[DocumentPart]:
        if batch.section != self._section:
            yield from self._begin(batch.section)
        for row in batch.rows:
            self._buffer += b"," if self._has_rows else b""
            self._buffer += orjson.dumps(_json_value(row))
            self._has_rows = True
            yield from self._full_parts()

    def end(self) -> Iterator[DocumentPart]:
        self._buffer += b"]}" if self._section else b"}"
        yield from self._remaining_parts()

    def _begin(self, section: str) -> Iterator[DocumentPart]:
        if self._section:
            self._buffer += b"]"
            yield from self._remaining_parts()
            self._buffer += b","
        self._section, self._has_rows = section, False
        self._buffer += orjson.dumps(json_name(section)) + b":["

    def _full_parts(self) -> Iterator[DocumentPart]:
        while len(self._buffer) >= self._max_bytes:
            yield self._part()

    def _remaining_parts(self) -> Iterator[DocumentPart]:
        while self._buffer:
            yield self._part()

    def _part(self) -> DocumentPart:
        data = bytes(self._buffer[: self._max_bytes])
        del self._buffer[: self._max_bytes]
        return DocumentPart(json_name(self._section), data)


def _json_value(value: Any) -> Any:
    """Return a value in the form of ProtoJSON: camelCase names, int64 as text."""
    if isinstance(value, Mapping):
        return {json_name(name): _json_value(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_json_value(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if is_integer or isinstance(value, UUID) else value
