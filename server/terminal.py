"""What every command does: reads settings, runs a loop, refuses in a sentence."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import typer
import uvloop

from server.composition import serving
from server.composition.edge import rates
from server.config import (
    ConfigurationError,
    Settings,
    check_loopback,
    load,
)
from server.domain.errors import AcademyError
from server.embedded.processes import EmbeddedServerError
from server.logs import configure
from server.rpc.contract import ContractError
from server.store.credentials.signing_keys import UnreadableKeys

_REFUSALS = (
    AcademyError,
    ConfigurationError,
    ContractError,
    EmbeddedServerError,
    UnreadableKeys,
    serving.AddressInUse,
)


@contextmanager
def report_errors() -> Iterator[None]:
    """Tell an operator what is wrong in a sentence; a trace is for what is not."""
    try:
        yield
    except _REFUSALS as error:
        typer.secho(str(error), err=True, fg=typer.colors.RED)
        raise typer.Exit(1) from error


def run_to_end(work: Coroutine[Any, Any, None]) -> None:
    """Run a command's work on a loop of its own."""
    with report_errors():
        uvloop.run(work)


def loaded(*required: str, debug: bool | None = None) -> Settings:
    """Give the settings, and begin to log; `debug` is the default of DEBUG."""
    with report_errors():
        settings = load(*required)
        if debug is not None and "debug" not in settings.model_fields_set:
            settings = settings.model_copy(update={"debug": debug})
        check_loopback(settings)
        rates(settings)
    configure(settings.log_level)
    return settings
