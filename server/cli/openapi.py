"""`academy openapi`: prints the OpenAPI document of the REST API."""

from __future__ import annotations

import orjson
import typer

from edge.openapi import document as openapi_document
from server.cli.terminal import load_settings
from server.composition.edge.app import edge_settings
from server.rpc import contract


def openapi() -> None:
    """Print the REST API as an OpenAPI 3.1 document in JSON."""
    settings = edge_settings(load_settings(), {})
    document = openapi_document(contract.descriptors(), settings)
    typer.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())
