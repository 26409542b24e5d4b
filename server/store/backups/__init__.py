"""Backups: files of pg_dump with a manifest, and how they are restored."""
