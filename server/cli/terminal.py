"""What every command shares: settings, an event loop, errors without a traceback."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import typer
import uvloop
from structlog.typing import Processor

from server.composition.edge.app import rates
from server.composition.listeners.sockets import CannotListen
from server.composition.tracing import check_tracing
from server.config import (
    ConfigurationError,
    Settings,
    check_loopback,
    load,
    text_of,
    with_local_defaults,
)
from server.domain.errors import AcademyError, StoreUnavailable
from server.observability.logging import configure
from server.observability.tracing.logs import add_trace
from server.rpc.contract import ContractError
from server.store.accounts.erasure_log import DamagedErasureLog
from server.store.backups.errors import BackupError
from server.store.backups.previous_schema import RestoreUnfinished
from server.store.connections.database_url import parse_database_url
from server.store.connections.faults import (
    DATABASE_ERRORS,
    describe_fault,
    is_misconfigured,
)
from server.store.credentials.signing_keys import UnreadableKeys

_EXPECTED_ERRORS: tuple[type[Exception], ...] = (
    AcademyError,
    ConfigurationError,
    ContractError,
    UnreadableKeys,
    CannotListen,
    BackupError,
    DamagedErasureLog,
    RestoreUnfinished,
)


def print_error(message: str) -> None:
    """Print a message to standard error."""
    typer.secho(message, err=True, fg=typer.colors.RED)


@contextmanager
def report_errors(
    settings: Settings | None = None,
    report: Callable[[str], None] = print_error,
    expected: tuple[type[Exception], ...] = (),
) -> Iterator[None]:
    """Report an expected error as one message and exit with 1.

    `expected` adds classes to those that every command expects.
    Errors of the database become a sentence that says what to do; any other error is a
    defect and keeps its traceback.
    """
    try:
        yield
    except StoreUnavailable as error:
        report(describe_fault(error.__cause__ or error, _role(settings)))
        raise typer.Exit(1) from error
    except DATABASE_ERRORS as error:
        if not is_misconfigured(error):
            raise
        report(describe_fault(error, _role(settings)))
        raise typer.Exit(1) from error
    except _EXPECTED_ERRORS + expected as error:
        report(str(error))
        raise typer.Exit(1) from error


def failure(message: str) -> typer.Exit:
    """Print a message to standard error; return the exception that exits with 1."""
    print_error(message)
    return typer.Exit(1)


def _role(settings: Settings | None) -> str:
    """Return the role that the GRANT in an error message has to name."""
    url = text_of(settings.database_url) if settings else ""
    return parse_database_url(url).role if url else ""


def run_async(work: Coroutine[Any, Any, None], settings: Settings) -> None:
    """Run a coroutine on a new event loop and report expected errors."""
    with report_errors(settings):
        uvloop.run(work)


def load_settings(*required: str, local: bool = False) -> Settings:
    """Return the settings and configure logging. See `read_settings`."""
    with report_errors():
        settings = read_settings(*required, local=local)
    configure_logging(settings)
    return settings


def read_settings(*required: str, local: bool = False) -> Settings:
    """Return the settings; `local` ones have the defaults of `academy up`.

    Raises ConfigurationError and ContractError.
    """
    settings = load(*required)
    if local:
        settings = with_local_defaults(settings)
    check_loopback(settings)
    rates(settings)
    check_tracing(settings)
    return settings


def configure_logging(settings: Settings, *processors: Processor) -> None:
    """Log as the settings say; the `processors` add fields to each line."""
    trace_ids = [add_trace] if settings.otel_exporter_otlp_endpoint else []
    configure(settings.log_level, settings.log_format, *trace_ids, *processors)
