"""`academy top`: a live view of a running server, over its metrics listener."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from server.cli.monitoring.frame import MAX_METHODS, frame
from server.cli.monitoring.samples import Interval
from server.cli.monitoring.scraping import MetricsTimeout, NoMetrics, scrape
from server.cli.terminal import failure, load_settings
from server.config_addresses import check_server_address

OTHER_LINES = 16  # of a frame, beside the methods
WIDTH_WITHOUT_TERMINAL = 160


def _checked_address(value: str | None) -> str | None:
    try:
        return value and check_server_address(value)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def top(
    address: Annotated[
        str | None,
        typer.Option(
            help="Address of the metrics listener, HOST:PORT; default METRICS_LISTEN.",
            callback=_checked_address,
        ),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Print one frame and exit.")
    ] = False,
    interval: Annotated[
        float, typer.Option(min=0.1, max=60, help="Seconds between two frames.")
    ] = 2.0,
) -> None:
    """Show calls, latency, errors, pools, queues and faults of a running server.

    Exits with 1 if nothing answers at the address, with 2 if there is no address.
    """
    address = address or _metrics_listen()
    console = _console()
    with suppress(KeyboardInterrupt):
        view = _View(address, console)
        if once:
            _print_once(view, interval)
        elif console.is_terminal:
            _show_live(view, interval)
        else:
            while True:  # standard output is a file or a pipe: one frame below another
                console.print(view.next(interval))


def _metrics_listen() -> str:
    if address := load_settings().metrics_listen:
        return address
    raise typer.BadParameter("set METRICS_LISTEN, or use --address HOST:PORT")


def _console() -> Console:
    """Return a console; without a terminal its lines are long enough not to wrap."""
    console = Console()
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Console(width=WIDTH_WITHOUT_TERMINAL)


class _View:
    """Scrapes and renders frames. Exits with 1 if the first scrape fails."""

    def __init__(self, address: str, console: Console) -> None:
        self._address = address
        self.console = console
        try:
            self._last = scrape(address)
        except NoMetrics as error:
            raise failure(str(error)) from error

    def latest(self, seconds: float) -> RenderableType:
        """Wait and return the next frame. Raises NoMetrics."""
        time.sleep(seconds)
        scraped = scrape(self._address)
        interval, self._last = Interval(self._last, scraped), scraped
        return frame(interval, self._address, self._max_methods())

    def next(self, seconds: float) -> RenderableType:
        """Wait and return the next frame, or a line that says why there is none."""
        try:
            return self.latest(seconds)
        except NoMetrics as error:
            component = "event loop" if isinstance(error, MetricsTimeout) else "metrics"
            return Group(Text(f"FAULT {component}: {error}", style="bold red"))

    def _max_methods(self) -> int:
        if not self.console.is_terminal:
            return MAX_METHODS
        return max(self.console.height - OTHER_LINES, 3)


def _print_once(view: _View, seconds: float) -> None:
    try:
        view.console.print(view.latest(seconds))
    except NoMetrics as error:
        raise failure(str(error)) from error


def _show_live(view: _View, seconds: float) -> None:
    with Live(console=view.console, screen=True, auto_refresh=False) as live:
        live.update(Text("waiting for the second scrape"), refresh=True)
        while True:
            live.update(view.next(seconds), refresh=True)
