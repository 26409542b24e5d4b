"""Fetches the metrics of a running server over HTTP."""

from __future__ import annotations

import http.client
import time

from server.cli.monitoring.samples import Scrape

TIMEOUT_SECONDS = 2.0
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - not bound here


class NoMetrics(Exception):
    """The metrics listener does not answer; the message says why."""


class MetricsTimeout(NoMetrics):
    """Something listens, but does not answer in time."""


def scrape(address: str, timeout: float = TIMEOUT_SECONDS) -> Scrape:
    """Return the samples of the listener at HOST:PORT. Raises NoMetrics."""
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(
        _ANY_ADDRESS.get(host, host).strip("[]"), int(port), timeout=timeout
    )
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        body = response.read()
        if response.status != http.client.OK:
            raise NoMetrics(f"{address}: HTTP status {response.status}")
        return Scrape.parse(body.decode(), time.monotonic())
    except TimeoutError as error:
        raise MetricsTimeout(
            f"{address}: no answer within {timeout:g} s: the event loop is blocked, or "
            "the machine is overloaded"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        cause = str(error) or type(error).__name__
        raise NoMetrics(
            f"{address}: {cause}: is METRICS_LISTEN set for the server?"
        ) from error
    except ValueError as error:  # not UTF-8, or not the text format
        raise NoMetrics(
            f"{address}: the response is not in the Prometheus text format"
        ) from error
    finally:
        connection.close()
