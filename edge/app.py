"""The edge's front door: a FastAPI shell around one raw ASGI dispatcher.

The shell has what is not a binding: health, and the documentation where it is on.
"""

import asyncio
import logging
from functools import cached_property
from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import FastAPI
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response

from edge.bindings import Router, read_bindings
from edge.codec import Codec
from edge.config import EdgeSettings
from edge.dispatcher import Dispatcher
from edge.openapi import describe
from edge.port import CallPort
from edge.streams import Receive, Send

_log = logging.getLogger("edge")
_DEFAULTS = EdgeSettings()
_ASSETS = Path(fastapi_offline.__file__).parent / "static"
_READY_TIMEOUT = 5.0  # seconds until a readiness check counts as failed
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>API documentation</title>
<link rel="stylesheet" href="docs/swagger-ui.css">
<link rel="icon" href="docs/favicon.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
_START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#swagger-ui"});\n'
# Swagger UI styles its elements in place; scripts come from files only.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_PAGE_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Edge(FastAPI):
    """The shell; every path that is not its own is a binding's.

    The dispatcher stands before FastAPI's router and its middleware, because each
    of them costs as much as the whole of it.
    """

    def __init__(
        self, codec: Codec, router: Router, port: CallPort, settings: EdgeSettings
    ) -> None:
        super().__init__(
            title=settings.title,
            version=settings.version,
            openapi_url=None,
            docs_url=None,
            redoc_url=None,
            redirect_slashes=False,
        )
        self._codec = codec
        self._router = router
        self._settings = settings
        self._dispatch = Dispatcher(codec, router, port, settings)
        self._add_health()
        if settings.docs:
            self._add_docs()
        paths = (str(getattr(route, "path", "")) for route in self.router.routes)
        self._own = frozenset(path for path in paths if path)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http" or scope["path"] in self._own:
            await super().__call__(scope, receive, send)
        else:
            await self._dispatch(scope, receive, send)

    @cached_property
    def _document(self) -> dict[str, Any]:
        return describe(self._codec, self._router.bindings, self._settings)

    def openapi(self) -> dict[str, Any]:
        """Give the OpenAPI document of the bindings."""
        return self._document

    def _add_health(self) -> None:
        async def livez() -> Response:
            return Response(status_code=200, headers={"Cache-Control": "no-store"})

        async def readyz() -> Response:
            status = 200 if await self._is_ready() else 503
            return Response(status_code=status, headers={"Cache-Control": "no-store"})

        for path, answer in (("/livez", livez), ("/readyz", readyz)):
            self.add_api_route(path, answer, methods=["GET", "HEAD"])

    async def _is_ready(self) -> bool:
        """Ask whoever knows; whatever goes wrong with that is not ready."""
        if self._settings.ready is None:
            return True
        try:
            async with asyncio.timeout(_READY_TIMEOUT):
                return await self._settings.ready()
        except Exception:
            _log.exception("the readiness check failed")
            return False

    def _add_docs(self) -> None:
        async def page() -> Response:
            return HTMLResponse(_PAGE, headers=_PAGE_HEADERS)

        async def start() -> Response:
            return Response(_START, media_type="text/javascript", headers=_PAGE_HEADERS)

        async def document() -> Response:
            return JSONResponse(self.openapi(), headers={"Cache-Control": "no-cache"})

        self.add_api_route("/docs", page)
        self.add_api_route("/docs/start.js", start)
        self.add_api_route("/openapi.json", document)
        for name in ("swagger-ui.css", "swagger-ui-bundle.js", "favicon.png"):
            self._add_asset(name)

    def _add_asset(self, name: str) -> None:
        async def asset() -> Response:
            return FileResponse(_ASSETS / name, headers=_PAGE_HEADERS)

        self.add_api_route(f"/docs/{name}", asset)


def create_app(
    descriptors: bytes, port: CallPort, settings: EdgeSettings = _DEFAULTS
) -> FastAPI:
    """Give the REST application of every annotated method in `descriptors`.

    `descriptors` is a serialised FileDescriptorSet with all imports. Raises
    ValueError where an annotation or a setting cannot be served, and says which.
    """
    codec = Codec(descriptors)
    router = Router(tuple(read_bindings(codec, settings.extra_bindings)))
    return Edge(codec, router, port, settings)
