"""Backups: what reads and restores them, from the settings."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from server.composition.resources import Resources
from server.config import ConfigurationError, Pooler, Settings, require, text_of
from server.domain.credentials.secret_key import SecretKey
from server.store.accounts.erasure import Erasures
from server.store.accounts.erasure_log import read_erasures
from server.store.backups.backup import BackupSource
from server.store.backups.completion import CompletionOptions, RestoredStores
from server.store.backups.libpq import libpq_target
from server.store.backups.programs import PROGRAM_NAMES, search_path
from server.store.backups.restore import RestoreRequest
from server.store.connections.connect import Database


def backup_source(settings: Settings, installed: Path | None) -> BackupSource:
    """Return what is backed up; `installed` has the programs of an installed wheel.

    Raises ConfigurationError, BackupError.
    """
    require(settings, "database_url", "secret_key")
    _refuse_pooler(settings)
    url = text_of(settings.database_url)
    return BackupSource(
        database=Database(url),
        target=libpq_target(url),
        folders=_folders(settings, installed),
        secret=_secret(settings),
    )


def restored_stores(resources: Resources) -> RestoredStores:
    """Return what a restored database is completed with."""
    return RestoredStores(
        database=resources.database,
        redis=resources.redis,
        erasures=Erasures(resources.database, resources.feed),
        secret=resources.secret,
        clock=resources.clock,
    )


def restore_request(
    settings: Settings,
    installed: Path | None,
    file: Path,
    options: CompletionOptions,
    *,
    replace: bool,
) -> RestoreRequest:
    """Return what to restore. Raises ConfigurationError, BackupError."""
    require(settings, "database_url")
    _refuse_pooler(settings)
    return RestoreRequest(
        file=file,
        target=libpq_target(text_of(settings.database_url)),
        folders=_folders(settings, installed),
        replace=replace,
        options=options,
    )


def logged_erasures(
    settings: Settings, files: Sequence[Path]
) -> Mapping[int, datetime] | None:
    """Return the erasures in these files and in ERASURE_LOG; None without any.

    Raises DamagedErasureLog.
    """
    paths = [*files, *filter(None, [settings.erasure_log])]
    if not paths:
        return None
    erasures: dict[int, datetime] = {}
    for path in paths:
        erasures |= read_erasures(path)
    return erasures


def check_pg_bin(folder: Path) -> None:
    """Raise ConfigurationError unless PG_BIN has the programs."""
    for name in PROGRAM_NAMES:
        if not os.access(folder / name, os.X_OK):
            raise ConfigurationError(
                f"PG_BIN={folder} has no {name}: set it to the folder that contains "
                "it, such as /usr/lib/postgresql/15/bin"
            )


def _folders(settings: Settings, installed: Path | None) -> Sequence[Path]:
    if settings.pg_bin:
        check_pg_bin(settings.pg_bin)
        return [settings.pg_bin]
    return [*search_path(), *filter(None, [installed])]


def _refuse_pooler(settings: Settings) -> None:
    if settings.database_pooler is not Pooler.NONE:
        raise ConfigurationError(
            "DATABASE_URL: must lead to Postgres itself for a backup or a restore: set "
            "it without the pooler, and DATABASE_POOLER=none"
        )


def _secret(settings: Settings) -> SecretKey:
    previous = text_of(settings.secret_key_previous) or None
    return SecretKey(text_of(settings.secret_key), previous)
