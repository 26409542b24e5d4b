"""The edge's front door: a FastAPI shell around one raw ASGI dispatcher."""

from fastapi import FastAPI

from edge.config import EdgeSettings
from edge.port import CallPort


def create_app(
    descriptors: bytes, port: CallPort, settings: EdgeSettings = EdgeSettings()
) -> FastAPI:
    """Give the REST application of every annotated method in `descriptors`."""
    raise NotImplementedError
