"""Migrations as a script for psql, for those who run all SQL themselves."""

from __future__ import annotations

import io
import re

from alembic import command

from server.store.migrate import (
    ADVISORY_LOCK,
    LOCK_TIMEOUT,
    configuration,
    lock_timeout_statement,
    missing,
)

# Unlike `upgrade`, the script holds the lock in its session, which psql ends.
_SCRIPT = r"""
-- From {present} to revision {last}.
-- Run it with psql, without --single-transaction. It stops at the first error, such as
-- a lock that it waited {lock_timeout} for: then print it again, and run that.
\set ON_ERROR_STOP on

DO $$
BEGIN
    IF NOT pg_try_advisory_lock({advisory_lock}) THEN
        RAISE EXCEPTION 'another process migrates this database';
    ELSIF {is_other_revision} THEN
        RAISE EXCEPTION 'this script is for a database at {present}: print it again';
    END IF;
END $$;

{statements}
SELECT pg_advisory_unlock({advisory_lock});
"""


def script(revision: str, *, after_rollout: bool = False) -> str:
    """Return SQL that runs the migrations that a database at this revision lacks.

    See `missing`.
    """
    migrations = missing(revision, after_rollout=after_rollout)
    if not migrations:
        return "-- the database lacks no migration of this release\n"
    output, last = io.StringIO(), migrations[-1].revision
    command.upgrade(configuration(output), f"{revision or 'base'}:{last}", sql=True)
    begin = f"BEGIN;\n\n{lock_timeout_statement()};"
    return _SCRIPT.format(
        present=f"revision {revision}" if revision else "no revision",
        last=last,
        is_other_revision=_is_other(revision),
        lock_timeout=f"{LOCK_TIMEOUT.total_seconds()} s",
        advisory_lock=ADVISORY_LOCK,
        statements=re.sub("^BEGIN;$", begin, output.getvalue(), flags=re.MULTILINE),
    ).lstrip()


def _is_other(revision: str) -> str:
    """Return the condition, in SQL, that a database is not at this revision."""
    if not revision:
        return "to_regclass('alembic_version') IS NOT NULL"
    present = "(SELECT version_num FROM alembic_version)"
    return f"{present} IS DISTINCT FROM '{revision}'"
