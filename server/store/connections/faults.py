"""Errors of Postgres: which are outages, and what an operator can do about each."""

from __future__ import annotations

import ssl

import asyncpg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi

from server.domain.errors import StoreUnavailable

# SQLSTATE classes and codes, https://www.postgresql.org/docs/18/errcodes-appendix.html:
# connection, no such database, authentication, read-only, transaction rolled back,
# insufficient resources, object not in the required state (locks), shut down
_OUTAGES = ("08", "3D", "28", "25006", "40", "53", "55", "57")
_SHUTDOWNS = ("57P01", "57P02")  # the session was ended, by an operator or a crash
_POOLER_STATES = frozenset({"26000", "42P05"})
_POOLER_ADVICE = (
    "DATABASE_URL points to a connection pooler such as pgbouncer, not to Postgres: "
    "set DATABASE_POOLER=transaction"
)
READ_ONLY_ADVICE = (
    "this server is read-only: set DATABASE_URL to the primary, or to all hosts with "
    "target_session_attrs=read-write"
)
_TABLE_GRANTS = (
    "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}; "
    "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}"
)

# What is raised and is no outage: SQLAlchemy's errors, those of its adapter when a
# connection is refused, or asyncpg's own.
DATABASE_ERRORS = (
    sa.exc.SQLAlchemyError,
    AsyncAdapt_asyncpg_dbapi.Error,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
)


def is_outage(error: BaseException) -> bool:
    """Return whether Postgres cannot serve now, so that a retry may succeed."""
    if isinstance(error, sa.exc.IntegrityError):
        return False
    if isinstance(error, sa.exc.DBAPIError):
        state = _state(error)
        return error.connection_invalidated or state.startswith(_OUTAGES)
    if _state(error).startswith(_OUTAGES) or is_lost(error):
        return True
    return isinstance(
        driver_error(error),
        sa.exc.TimeoutError
        | OSError
        | TimeoutError
        | asyncpg.TargetServerAttributeNotMatched,
    )


def is_lost(error: BaseException) -> bool:
    """Return whether asyncpg found the connection of a statement closed."""
    if isinstance(error, asyncpg.ClientConfigurationError):
        return False
    return (
        isinstance(
            error, OSError | asyncpg.InterfaceError | asyncpg.InternalClientError
        )
        or _state(error).startswith("08")
        or _state(error) in _SHUTDOWNS
    )


def is_unreachable(error: BaseException) -> bool:
    """Return whether no connection could be made or used, of any caller."""
    if isinstance(driver_error(error), StoreUnavailable | OSError | TimeoutError):
        return True
    return _state(error).startswith(("08", "57P"))


def is_read_only(error: BaseException) -> bool:
    """Return whether the server accepts no writes, such as a demoted primary."""
    return _state(error) == "25006"


def is_lock_conflict(error: BaseException) -> bool:
    """Return whether a statement gave up waiting for a lock, or met a deadlock."""
    return _state(error) in ("55P03", "40P01")


def is_missing_privilege(error: BaseException) -> bool:
    """Return whether the role may not do this, such as read a table."""
    return _state(error) == "42501"


def is_misconfigured(error: BaseException) -> bool:
    """Return whether only an operator can fix this, so that a retry cannot succeed."""
    state = _state(error)
    return (
        state.startswith(("25006", "28", "3D", "3F", "42"))
        or state in _POOLER_STATES
        or "unsupported startup parameter" in str(error)
        or isinstance(driver_error(error), asyncpg.ClientConfigurationError)
    )


def describe_fault(error: BaseException, role: str = "") -> str:
    """Return one sentence: what is wrong with the database and what to do.

    It holds names of databases, roles and tables, never a value or a password.
    """
    cause = driver_error(error)
    state, role = _state(error), f'"{role}"' if role else "<role>"
    text = str(getattr(cause, "args", ("",))[0] if cause.args else "")
    if state in _POOLER_STATES or "unsupported startup parameter" in text:
        return _POOLER_ADVICE
    if is_missing_privilege(error):
        return f"{text}: {_missing_grant(text, role)}"
    if advice := _ADVICE.get(state) or _ADVICE.get(state[:2]):
        return f"{text}: {advice}"
    return _describe_connection_fault(cause) or f"Postgres rejected a statement: {text}"


_ADVICE = {
    "25006": READ_ONLY_ADVICE,
    "28": "correct the user and the password in DATABASE_URL, or pg_hba.conf",
    "3D": "create it with CREATE DATABASE, or correct DATABASE_URL",
    "3F": (
        "create the schema public, as its owner run: GRANT USAGE, CREATE ON SCHEMA "
        "public TO the role, or set the role's search_path"
    ),
    "42P01": "run academy migrate",
    "53": (
        "raise the limit in the message (such as max_connections), or stop "
        "other clients"
    ),
    "55P03": "another transaction holds a lock on the table: retry later",
    "57P03": "wait until Postgres has started",
}


def _missing_grant(text: str, role: str) -> str:
    """Return who has to run which GRANT; `text` is the message of Postgres."""
    if "must be owner of schema" in text:
        return "run this command as the role that owns the schema, or the database"
    if "must be owner of" in text:
        return "run academy migrate as the role that owns the tables"
    if "for schema" in text:
        return (
            f"as the owner of the database, run: GRANT CREATE ON SCHEMA public TO "
            f"{role}"
        )
    if "for database" in text:
        return f"as its owner, run: GRANT CONNECT ON DATABASE <name> TO {role}"
    return f"as the owner of the tables, run: {_TABLE_GRANTS.format(role=role)}"


def _describe_connection_fault(error: BaseException) -> str:
    """Return the sentence for a connection that was not made, "" for other errors."""
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return "no host in DATABASE_URL matches target_session_attrs"
    if isinstance(error, asyncpg.ClientConfigurationError):
        return f"DATABASE_URL cannot be used: {error.args[0]}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            "the certificate of Postgres is not trusted: set sslrootcert in "
            "DATABASE_URL to the file with the certificate of its certificate "
            f"authority ({error.verify_message})"
        )
    if isinstance(error, StoreUnavailable | sa.exc.TimeoutError | TimeoutError):
        return "Postgres does not respond: start Postgres, or correct DATABASE_URL"
    if isinstance(error, OSError):
        cause = error.strerror or str(error) or type(error).__name__
        return (
            f"no connection to Postgres ({cause}): "
            "start Postgres, or correct DATABASE_URL"
        )
    return ""


def driver_error(error: BaseException) -> BaseException:
    """Return the error of asyncpg or of the socket.

    SQLAlchemy wraps those of asyncpg twice, and others once: a statement that has to
    connect again can fail with an OSError.
    """
    if not isinstance(error, sa.exc.StatementError) or error.orig is None:
        return error
    if isinstance(error, sa.exc.DBAPIError):
        return error.orig.__cause__ or error.orig
    return error.orig


def _state(error: BaseException) -> str:
    """Return the SQLSTATE, "" if the error has none."""
    return str(getattr(driver_error(error), "sqlstate", None) or "")
