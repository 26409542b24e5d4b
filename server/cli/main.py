"""The `academy` command: registers every subcommand."""

from __future__ import annotations

import typer

from server.cli import (
    admin,
    backups,
    bench_seed,
    keys,
    migrate,
    openapi,
    outbox,
    serve,
)
from server.cli.monitoring import doctor, top
from server.composition.listeners.serving import use_batch_scheduling

cli = typer.Typer(
    help="Run and operate Blatam Academy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for function in (
    serve.up,
    serve.serve,
    serve.edge,
    migrate.migrate,
    backups.backup,
    backups.restore,
    backups.complete_restore,
    doctor.doctor,
    openapi.openapi,
    top.top,
    bench_seed.bench_seed,
):
    cli.command()(function)
cli.add_typer(admin.commands, name="admin")
cli.add_typer(keys.commands, name="keys")
cli.add_typer(outbox.commands, name="outbox")


@cli.callback()
def _prepare_process() -> None:
    use_batch_scheduling()


def main() -> None:
    """Run the command line."""
    cli()
