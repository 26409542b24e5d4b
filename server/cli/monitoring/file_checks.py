"""The checks of ERASURE_LOG and PG_BIN: what is needed there, before it is used."""

from __future__ import annotations

import os
from pathlib import Path

from server.cli.monitoring.findings import Finding
from server.composition.backups import check_pg_bin
from server.config import ConfigurationError, Settings
from server.store.accounts.erasure_log import DamagedErasureLog, read_erasures


def check_files(settings: Settings) -> list[Finding]:
    """Check what these settings name."""
    findings = [_check_erasure_log(settings.erasure_log)]
    if settings.pg_bin:
        findings.append(_check_programs(settings.pg_bin))
    return findings


def _check_erasure_log(path: Path | None) -> Finding:
    """Check the file, or that it can be created; it is not created here.

    It would belong to who runs this command, which need not be who runs the service.
    Without it the service works, so that this is no failure.
    """
    if path is None:
        result = (
            "ERASURE_LOG is not set: a restored backup brings users back who were "
            "erased after it was made"
        )
        advice = "set ERASURE_LOG to a file outside the database, for every process"
        return Finding("erasure log", True, result, advice)
    needed, mode = (
        (path, os.W_OK) if path.exists() else (path.parent, os.W_OK | os.X_OK)
    )
    if not os.access(needed, mode) or path.is_dir() or not path.parent.is_dir():
        advice = (
            "set ERASURE_LOG to a file in a folder that exists, writable for the "
            "service's account; until then, the service does not start"
        )
        return Finding("erasure log", False, f"{path}: cannot be written", advice)
    if needed == path.parent:
        return Finding("erasure log", True, f"{path}: is created by the service")
    try:
        erasures = read_erasures(path)
    except DamagedErasureLog as error:
        advice = (
            "if it is another kind of file, correct ERASURE_LOG; until then, the "
            "service does not start"
        )
        return Finding("erasure log", False, str(error), advice)
    return Finding("erasure log", True, f"{path}: {len(erasures)} users")


def _check_programs(folder: Path) -> Finding:
    try:
        check_pg_bin(folder)
    except ConfigurationError as error:
        fault, _, advice = str(error).partition(": ")
        advice = f"{advice}; until then, academy backup fails"
        return Finding("backups", False, fault, advice)
    return Finding("backups", True, f"PG_BIN={folder} has pg_dump and pg_restore")
