"""The supervisor: `python -m server.cli.workers serve` or `up`, with WORKERS above 1.

`academy serve` and `academy up` become this process, which imports neither grpc nor
the application.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from functools import partial

import structlog
import typer

from server.cli.workers.process import interpreter
from server.cli.workers.running import WorkerPlan, run_workers
from server.cli.workers.supervisor import WorkerFailed
from server.composition.listeners.sockets import CannotListen
from server.config import ConfigurationError, load, with_local_defaults
from server.observability.logging import configure

log = structlog.get_logger()
_EXPECTED_ERRORS = (ConfigurationError, CannotListen, WorkerFailed)


def main(mode: str) -> None:
    """Run the workers until a signal; exit with 0 if all of them ended well."""
    try:
        ended_well = _serve() if mode == "serve" else _up()
    except _EXPECTED_ERRORS as error:
        ended_well = _fail(error)
    sys.exit(0 if ended_well else 1)


def _fail(error: Exception) -> bool:
    typer.secho(str(error), err=True, fg=typer.colors.RED)
    return False


def _serve() -> bool:
    settings = load()
    configure(settings.log_level, settings.log_format)

    def announce(grpc_address: str, http_address: str) -> None:
        workers = settings.workers
        log.info("listening", grpc=grpc_address, http=http_address, workers=workers)

    return asyncio.run(run_workers(WorkerPlan(settings, announce)))


def _up() -> bool:
    # Not at the top: the embedded servers are an extra, which `serve` does without.
    from server.cli.embedded import embedded_servers, print_banner
    from server.embedded.processes import EmbeddedServerError

    settings = with_local_defaults(load())
    configure(settings.log_level, settings.log_format)
    try:
        with embedded_servers(settings) as (settings, servers):
            _migrate()
            announce = partial(print_banner, settings)
            plan = WorkerPlan(settings, announce, ("--up",), servers.check)
            return asyncio.run(run_workers(plan))
    except EmbeddedServerError as error:
        return _fail(error)


def _migrate() -> None:
    """Upgrade the schema, in a process of its own. Raises WorkerFailed."""
    command = [*interpreter(), "-m", "server", "migrate"]
    result = subprocess.run(  # noqa: S603 - this program
        command, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise WorkerFailed(result.stderr.strip())


if __name__ == "__main__":
    main(sys.argv[1])
