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

from server.cli.embedded import print_banner, start_embedded_servers
from server.cli.workers.process import interpreter
from server.cli.workers.running import WorkerPlan, run_workers
from server.cli.workers.supervisor import WorkerFailed
from server.composition.listeners.sockets import CannotListen
from server.config import ConfigurationError, load, with_local_defaults
from server.embedded.processes import EmbeddedServerError
from server.embedded.servers import EmbeddedServers
from server.observability.logging import configure

log = structlog.get_logger()
_EXPECTED_ERRORS = (
    ConfigurationError,
    CannotListen,
    EmbeddedServerError,
    WorkerFailed,
)


def main(mode: str) -> None:
    """Run the workers until a signal; exit with 0 if all of them ended well."""
    try:
        ended_well = _serve() if mode == "serve" else _up()
    except _EXPECTED_ERRORS as error:
        typer.secho(str(error), err=True, fg=typer.colors.RED)
        ended_well = False
    sys.exit(0 if ended_well else 1)


def _serve() -> bool:
    settings = load()
    configure(settings.log_level, settings.log_format)

    def announce(grpc_address: str, http_address: str) -> None:
        workers = settings.workers
        log.info("listening", grpc=grpc_address, http=http_address, workers=workers)

    return asyncio.run(run_workers(WorkerPlan(settings, announce)))


def _up() -> bool:
    settings = with_local_defaults(load())
    configure(settings.log_level, settings.log_format)
    servers = EmbeddedServers(settings.state_dir)
    try:
        # embedded Postgres has no other processes, so none of the release before
        options = [] if settings.database_url else ["--after-rollout"]
        settings = start_embedded_servers(settings, servers)
        _migrate(*options)
        announce = partial(print_banner, settings)
        plan = WorkerPlan(settings, announce, ("--up",), servers.check)
        return asyncio.run(run_workers(plan))
    finally:
        servers.stop()


def _migrate(*options: str) -> None:
    """Upgrade the schema, in a process of its own. Raises EmbeddedServerError."""
    command = [*interpreter(), "-m", "server", "migrate", *options]
    result = subprocess.run(  # noqa: S603 - this program
        command, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise EmbeddedServerError(result.stderr.strip())


if __name__ == "__main__":
    main(sys.argv[1])
