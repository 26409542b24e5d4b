"""`academy doctor`: prints the settings and the findings of every check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import orjson
import typer
import uvloop

from server.cli import state_dir
from server.cli.monitoring import checks
from server.cli.monitoring.findings import Finding
from server.cli.terminal import load_settings


def doctor(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print machine-readable JSON.")
    ] = False,
) -> None:
    """Check the settings and the servers; exit with 1 if any check fails."""
    settings = state_dir.as_served(load_settings())
    findings = uvloop.run(checks.run_checks(settings))
    values = checks.displayed_settings(settings)
    if as_json:
        report = {"settings": values, "findings": findings}
        typer.echo(orjson.dumps(report, option=orjson.OPT_INDENT_2).decode())
    else:
        _print_report(values, findings)
    raise typer.Exit(0 if all(finding.ok for finding in findings) else 1)


def _print_report(values: Mapping[str, str], findings: Sequence[Finding]) -> None:
    for name, value in values.items():
        typer.echo(f"{name:<22} {value}")
    typer.echo("")
    for finding in findings:
        mark = "ok  " if finding.ok else "FAIL"
        typer.echo(f"{mark} {finding.check:<12} {finding.result}")
        if finding.advice:
            typer.echo(f"     {'':<12} -> {finding.advice}")
