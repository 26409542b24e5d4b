"""The edge's front door: a FastAPI shell around one raw ASGI dispatcher.

The shell has what is not a binding: health, and the documentation where it is on.
"""

import asyncio
import logging
from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response

from edge.bindings import BindingError, Router, read_bindings
from edge.codec import Codec
from edge.config import EdgeSettings
from edge.dispatcher import Dispatcher
from edge.http.streams import Receive, Send
from edge.openapi import describe
from edge.port import CallPort

_log = logging.getLogger("edge")
_DEFAULTS = EdgeSettings()
_ASSETS = Path(fastapi_offline.__file__).parent / "static"
_READY_TIMEOUT = 5.0  # seconds until a readiness check counts as failed
_UNSTORED = {"Cache-Control": "no-store"}
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<title>API documentation</title><link rel="icon" href="docs/favicon.png">
<link rel="stylesheet" href="docs/swagger-ui.css"><div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script><script src="docs/start.js"></script>
"""
_START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#swagger-ui"});\n'
# Swagger UI styles its elements in place; scripts come from files only.
_PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
# A response is an ASGI application, which answers every request alike.
_PAGES = {
    "/docs": HTMLResponse(_PAGE, 200, _PAGE_HEADERS),
    "/docs/start.js": Response(_START, 200, _PAGE_HEADERS, "text/javascript"),
} | {
    f"/docs/{name}": FileResponse(_ASSETS / name, 200, _PAGE_HEADERS)
    for name in ("swagger-ui.css", "swagger-ui-bundle.js", "favicon.png")
}


class Edge(FastAPI):
    """The shell; every path that is not its own is a binding's.

    The dispatcher stands before FastAPI's router and its middleware, because each
    of them costs as much as the whole of it.
    """

    def __init__(
        self, codec: Codec, router: Router, port: CallPort, settings: EdgeSettings
    ) -> None:
        super().__init__(openapi_url=None, docs_url=None, redoc_url=None)
        self._codec = codec
        self._bindings = router.bindings
        self._settings = settings
        self._own: dict[str, Any] = {"/livez": Response(headers=_UNSTORED)}
        self._own["/readyz"] = self._readiness
        if settings.docs:
            self._own |= _PAGES | {"/openapi.json": self._described}
        for binding in router.bindings:
            if binding.template.text in self._own:
                told = f"{binding.method}: {binding.template.text} is the edge's own"
                raise BindingError(told)
        self._dispatch = Dispatcher(codec, router, port, settings, self._own)
        for path, answer in self._own.items():
            self.add_route(path, answer, methods=["GET"])  # and HEAD

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        own = scope["type"] != "http" or (
            scope["path"] in self._own and scope["method"] in ("GET", "HEAD")
        )
        if own:
            await super().__call__(scope, receive, send)
        else:
            await self._dispatch(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        """Give the OpenAPI document of the bindings."""
        if self.openapi_schema is None:
            self.openapi_schema = describe(self._codec, self._bindings, self._settings)
        return self.openapi_schema

    async def _described(self, _: Request) -> Response:
        return JSONResponse(self.openapi(), headers={"Cache-Control": "no-cache"})

    async def _readiness(self, _: Request) -> Response:
        """Ask whoever knows; whatever goes wrong with that is not ready."""
        ready, status = self._settings.ready, 503
        try:
            async with asyncio.timeout(_READY_TIMEOUT):
                status = 200 if ready is None or await ready() else 503
        except Exception:
            _log.exception("the readiness check failed")
        return Response(None, status, _UNSTORED)


def create_app(
    descriptors: bytes, port: CallPort, settings: EdgeSettings = _DEFAULTS
) -> FastAPI:
    """Give the REST application of every annotated method in `descriptors`.

    `descriptors` is a serialised FileDescriptorSet with all imports. Raises
    ValueError where an annotation or a setting cannot be served, and says which.
    """
    codec = Codec(descriptors)
    router = Router(tuple(read_bindings(codec, settings)))
    return Edge(codec, router, port, settings)
