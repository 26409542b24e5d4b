"""The file of a backup: complete, unchanged, and made with this key."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from server.domain.credentials.secret_key import SecretKey
from server.store.backups.archive import (
    Manifest,
    append_manifest,
    digest,
    read_manifest,
)
from server.store.backups.errors import BackupError
from tests.running import SECRET

DUMP = b"dump" * 1_000
KEY = SecretKey(SECRET)
OTHER_KEY = SecretKey("another secret key " * 2)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "backup"
    file.write_bytes(DUMP)
    manifest = Manifest(
        created_at=datetime(2026, 1, 2, tzinfo=UTC),
        revision="0001",
        schema="public",
        server_major=18,
        program_major=18,
        rows={"users": 3},
        dump_bytes=len(DUMP),
        dump_sha256=digest(file)[1],
    )
    append_manifest(file, manifest, KEY)
    return file


def test_manifest_is_read_with_current_or_previous_key(file: Path) -> None:
    manifest = read_manifest(file, KEY)
    assert manifest.rows == {"users": 3}
    assert read_manifest(file, SecretKey(OTHER_KEY.current, SECRET)) == manifest


def test_other_secret_key_is_named(file: Path) -> None:
    with pytest.raises(BackupError, match="another SECRET_KEY"):
        read_manifest(file, OTHER_KEY)


@pytest.mark.parametrize("size", [0, 1, 100, len(DUMP), -1])
def test_truncated_file_is_no_backup(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(BackupError, match="not a complete backup"):
        read_manifest(file, KEY)


def test_file_whose_beginning_is_missing_is_no_backup(file: Path) -> None:
    file.write_bytes(file.read_bytes()[1:])
    with pytest.raises(BackupError, match="not a complete backup"):
        read_manifest(file, KEY)


@pytest.mark.parametrize("position", [0, len(DUMP) - 1, len(DUMP) + 20])
def test_changed_file_is_refused(file: Path, position: int) -> None:
    """In the dump, and in the manifest: a dump is executed when it is restored."""
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)
    with pytest.raises(BackupError, match="has changed since the backup"):
        read_manifest(file, KEY)


def test_file_contains_no_secret_key(file: Path) -> None:
    assert SECRET.encode() not in file.read_bytes()
