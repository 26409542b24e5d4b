"""The REST application: a FastAPI shell around one raw ASGI dispatcher.

The shell serves what is not a binding: health checks, and the documentation.
"""

import asyncio
import logging
from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response

from edge.config import EdgeSettings
from edge.dispatcher import Dispatcher
from edge.http.request_headers import is_valid_host
from edge.http.response_headers import transport_security
from edge.http.streams import Receive, Send
from edge.observation import App, observe_page
from edge.openapi import describe
from edge.port import CallPort
from edge.routing.bindings import BindingError, read_bindings
from edge.routing.router import Router
from edge.schema.codec import Codec

_log = logging.getLogger("edge")
_DEFAULTS = EdgeSettings()
_ASSETS = Path(fastapi_offline.__file__).parent / "static"
_READY_TIMEOUT = 5.0  # seconds until a readiness check counts as failed
_NOT_STORED = {"Cache-Control": "no-store"}
_SECURITY_HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<title>API documentation</title><link rel="icon" href="docs/favicon.png">
<link rel="stylesheet" href="docs/swagger-ui.css"><div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script><script src="docs/start.js"></script>
"""
_START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#swagger-ui"});\n'
# Swagger UI sets styles inline; scripts come from files only.
_PAGE_HEADERS = _SECURITY_HEADERS | {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
}
# A response is an ASGI application that sends the same response to every request.
_PAGES = {
    "/docs": HTMLResponse(_PAGE, 200, _PAGE_HEADERS),
    "/docs/start.js": Response(_START, 200, _PAGE_HEADERS, "text/javascript"),
} | {
    f"/docs/{name}": FileResponse(_ASSETS / name, 200, _PAGE_HEADERS)
    for name in ("swagger-ui.css", "swagger-ui-bundle.js", "favicon.png")
}


class Edge(FastAPI):
    """The shell; requests for every path but its own go to the dispatcher.

    The dispatcher comes before FastAPI's router and middleware, because each of them
    costs as much as the whole dispatcher.
    """

    def __init__(
        self, codec: Codec, router: Router, port: CallPort, settings: EdgeSettings
    ) -> None:
        super().__init__(openapi_url=None, docs_url=None, redoc_url=None)
        self._codec = codec
        self._bindings = router.bindings
        self._settings = settings
        self._transport_security = transport_security(settings)
        self._own: dict[str, Any] = {"/livez": Response(headers=_NOT_STORED)}
        self._own["/readyz"] = self._readiness
        if settings.docs:
            self._own |= _PAGES | {"/openapi.json": self._described}
        for binding in router.bindings:
            if binding.template.text in self._own:
                path = binding.template.text
                raise BindingError(f"{binding.method}: {path} is reserved")
        self._dispatch: App = Dispatcher(codec, router, port, settings, self._own)
        if settings.middleware:
            self._dispatch = settings.middleware(self._dispatch)
        for path, response in self._own.items():
            self.add_route(path, response, methods=["GET"])  # and HEAD

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "http" and not self._is_own(scope):
            await self._dispatch(scope, receive, send)
            return
        observe = self._settings.observe_request
        serve_page, secured = super().__call__, self._secured(send)
        if scope["type"] == "http" and observe:
            await observe_page(observe, serve_page, scope, receive, secured)
        else:
            await serve_page(scope, receive, secured)

    def _secured(self, send: Send) -> Send:
        """Return a function that adds the HSTS header, if there is one, and sends."""
        if not self._transport_security:
            return send

        async def send_secured(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [*message["headers"], *self._transport_security]
                message = message | {"headers": headers}
            await send(message)

        return send_secured

    def _is_own(self, scope: Any) -> bool:
        """Return whether a request is for a page; an invalid one gets an error."""
        if scope["path"] not in self._own or scope["method"] not in ("GET", "HEAD"):
            return False
        hosts = (value for name, value in scope["headers"] if name == b"host")
        return all(map(is_valid_host, hosts))

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document of the bindings."""
        if self.openapi_schema is None:
            self.openapi_schema = describe(self._codec, self._bindings, self._settings)
        return self.openapi_schema

    async def _described(self, _: Request) -> Response:
        headers = _SECURITY_HEADERS | {"Cache-Control": "no-cache"}
        return JSONResponse(self.openapi(), headers=headers)

    async def _readiness(self, _: Request) -> Response:
        """Run the readiness check; one that fails counts as not ready."""
        ready, status = self._settings.ready, 503
        try:
            async with asyncio.timeout(_READY_TIMEOUT):
                status = 200 if ready is None or await ready() else 503
        except Exception:
            _log.exception("the readiness check failed")
        headers = dict(_NOT_STORED)
        if status == 503:
            headers["Retry-After"] = str(self._settings.retry_after)
        return Response(None, status, headers)


def create_app(
    descriptors: bytes, port: CallPort, settings: EdgeSettings = _DEFAULTS
) -> FastAPI:
    """Return the REST application of every annotated method in `descriptors`.

    `descriptors` is a serialised FileDescriptorSet with all imports. Raises
    ValueError naming an annotation or a setting that cannot be served.
    """
    codec = Codec(descriptors)
    router = Router(tuple(read_bindings(codec, settings)))
    return Edge(codec, router, port, settings)
