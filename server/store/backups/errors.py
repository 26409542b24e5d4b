"""BackupError: why a backup or a restore failed."""

from __future__ import annotations


class BackupError(Exception):
    """A backup or a restore has failed; the message says why and what to do."""
