"""The file of a backup: a dump of pg_dump, and a manifest behind it.

pg_restore reads the file as it is and ignores what follows the dump. The manifest is
written last, so a truncated file has none. A key derived from SECRET_KEY signs it,
because restoring a dump executes the SQL in it.

    dump | manifest (JSON) | HMAC of the manifest | HMAC that checks the key |
    length of the manifest (8 bytes) | MAGIC
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from server.domain.credentials.secret_key import SecretKey
from server.store.backups.errors import BackupError

MAGIC = b"blatam-academy backup 1\n"
MAX_MANIFEST_BYTES = 1 << 20
_TAG_BYTES = 32
_LENGTH_BYTES = 8
_FIXED_BYTES = 2 * _TAG_BYTES + _LENGTH_BYTES + len(MAGIC)
_CHUNK_BYTES = 1 << 20
_PURPOSE = "backups"
_KEY_CHECK = b"this backup was made with this key"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup contains. `rows` has the number of rows of each table."""

    created_at: datetime
    revision: str
    schema: str
    server_major: int
    program_major: int
    rows: Mapping[str, int]
    dump_bytes: int
    dump_sha256: str


def digest(file: Path, max_bytes: int | None = None) -> tuple[int, str]:
    """Return the size and the SHA-256 of a file, or of its beginning. Blocks."""
    hashed, size = hashlib.sha256(), 0
    with file.open("rb") as content:
        remaining = file.stat().st_size if max_bytes is None else max_bytes
        while chunk := content.read(min(remaining, _CHUNK_BYTES)):
            hashed.update(chunk)
            size += len(chunk)
            remaining -= len(chunk)
    return size, hashed.hexdigest()


def append_manifest(file: Path, manifest: Manifest, secret: SecretKey) -> None:
    """Complete a file that contains a dump, and write it to the disk. Blocks."""
    content = orjson.dumps(asdict(manifest))
    mac = secret.mac(_PURPOSE)
    with file.open("ab") as archive:
        archive.write(content + mac.sign(content) + mac.sign(_KEY_CHECK))
        archive.write(len(content).to_bytes(_LENGTH_BYTES, "big") + MAGIC)
        archive.flush()
        os.fsync(archive.fileno())


def read_manifest(file: Path, secret: SecretKey) -> Manifest:
    """Return the manifest of a file that is complete and unchanged. Blocks.

    Raises BackupError otherwise, and if SECRET_KEY is not that of the backup.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as archive:
            archive.seek(max(size - _FIXED_BYTES - MAX_MANIFEST_BYTES, 0))
            end = archive.read()
        manifest = _parse(end, size, file, secret)
        _, sha256 = digest(file, manifest.dump_bytes)
    except OSError as error:
        raise BackupError(f"{file} cannot be read: {error.strerror}") from error
    if sha256 != manifest.dump_sha256:
        raise BackupError(f"{file} has changed since the backup: use another backup")
    return manifest


def _parse(end: bytes, size: int, file: Path, secret: SecretKey) -> Manifest:
    incomplete = BackupError(
        f"{file} is not a complete backup: it is truncated, or academy backup has "
        "not written it"
    )
    if len(end) < _FIXED_BYTES or not end.endswith(MAGIC):
        raise incomplete
    fixed = end[-_FIXED_BYTES:]
    length = int.from_bytes(fixed[2 * _TAG_BYTES :][:_LENGTH_BYTES], "big")
    if length > len(end) - _FIXED_BYTES:
        raise incomplete
    mac = secret.mac(_PURPOSE)
    if not mac.verify(_KEY_CHECK, fixed[_TAG_BYTES : 2 * _TAG_BYTES]):
        raise BackupError(
            f"{file} was made with another SECRET_KEY: set SECRET_KEY to that key "
            "(academy up keeps it in the file secret_key of STATE_DIR)"
        )
    content = end[-_FIXED_BYTES - length : -_FIXED_BYTES]
    if not mac.verify(content, fixed[:_TAG_BYTES]):
        raise BackupError(f"{file} has changed since the backup: use another backup")
    values: dict[str, Any] = orjson.loads(content)
    created_at = datetime.fromisoformat(values.pop("created_at"))
    manifest = Manifest(created_at=created_at, **values)
    if manifest.dump_bytes != size - length - _FIXED_BYTES:
        raise incomplete
    return manifest
