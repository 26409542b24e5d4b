"""The raw ASGI application behind every binding: each request through its stages."""

import asyncio
import logging
from collections.abc import Container
from time import perf_counter
from typing import Any

from edge.codec import Codec
from edge.config import EdgeSettings
from edge.errors import Code, HttpError
from edge.exchange import Exchange
from edge.http.cookies import TokenCookies
from edge.http.etags import required_versions
from edge.http.negotiation import JSON, choose
from edge.http.request_headers import (
    RequestHeaders,
    call_timeout,
    has_body,
    is_valid_host,
)
from edge.http.response_headers import ResponseHeaders
from edge.http.streams import Disconnected, Receive, Send
from edge.observation import known_method
from edge.port import CallError, CallPort
from edge.requests.body import BodyReader
from edge.requests.build import RequestBuilder
from edge.requests.parameters import refuse_conditions
from edge.responses.failures import ErrorRenderer
from edge.responses.reply import NOT_STORED, PRIVATE, Replies, Response
from edge.responses.streaming import StreamCalls
from edge.responses.unary import UnaryCalls
from edge.routing.bindings import Binding
from edge.routing.route import Candidate, Routing, method_not_allowed
from edge.routing.router import Router

_log = logging.getLogger("edge")
Requests = list[bytes]  # serialized, in the order in which they are tried
_SAFE_METHODS = ("GET", "HEAD")


class Dispatcher:
    """Serves every binding of one application."""

    def __init__(
        self,
        codec: Codec,
        router: Router,
        port: CallPort,
        settings: EdgeSettings,
        pages: Container[str] = (),
    ) -> None:
        """Prepare the stages; raises ValueError for an invalid setting.

        `pages` are paths that another application serves to GET.
        """
        self._settings = settings
        self._observe = settings.observe_request
        slash = settings.serve_trailing_slash
        self._routing = Routing(router, pages, trailing_slash=slash)
        self._request_headers = RequestHeaders(settings)
        self._response_headers = written = ResponseHeaders(settings)
        self._body_reader = BodyReader(settings)
        self._builder = RequestBuilder(codec, settings.resume_token_field)
        self._error_renderer = ErrorRenderer(codec.registry, settings)
        self._cookies = TokenCookies(router.bindings, settings)
        self._replies = {b: Replies(codec, b, settings) for b in router.bindings}
        self._unary = UnaryCalls(port, settings, written, self._cookies)
        self._streaming = StreamCalls(port, settings, written, self._render_error)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Respond to one HTTP request; raises no exception except cancellation."""
        started = perf_counter()
        exchange = Exchange(scope, receive, send, self._request_headers.read(scope))
        try:
            await self._serve(exchange)
        except Disconnected:
            return
        except Exception as error:  # every error has a response
            response = self._render_error(exchange, error)
            caching = NOT_STORED if exchange.cookie_mode else PRIVATE
            response.headers[:0] = *caching, (b"content-type", JSON.encode())
            await self._send(exchange, response)
        finally:
            if self._observe:
                method, seconds = (
                    known_method(exchange.method),
                    perf_counter() - started,
                )
                self._observe(method, exchange.route, exchange.status, seconds)

    async def _serve(self, exchange: Exchange) -> None:
        headers, settings = exchange.head.headers, self._settings
        raw_headers = exchange.scope["headers"]
        exchange.metadata = self._request_headers.metadata(exchange.head, raw_headers)
        if not is_valid_host(headers.get(b"host", b"")):
            raise HttpError("the Host header must be a host with an optional port")
        candidates = self._routing.candidates(self._raw_path(exchange))
        preflight = b"access-control-request-method" in headers
        if exchange.method == "OPTIONS" and preflight:  # makes no call
            await self._answer_options(exchange, candidates)
            return
        matched = self._routing.match(candidates, exchange.method)
        if matched is None:
            await self._answer_options(exchange, candidates)
            return
        binding, segments = matched
        exchange.route = binding.template.text
        replies = self._replies[binding]
        exchange.media_type = choose(headers.get(b"accept"), replies.offers)
        exchange.cookie_mode = self._cookies.is_requested(exchange.head)
        streams = binding.streams
        default = settings.stream_timeout if streams else settings.default_timeout
        timeout = headers.get(b"grpc-timeout")
        exchange.timeout = call_timeout(timeout, default, settings.max_timeout)
        if streams and exchange.scope.get("http_version") == "1.0":
            raise _chunks_needed()
        requests = await self._build_requests(exchange, binding, segments)
        await self._call(exchange, binding, replies, requests)

    async def _call(
        self, exchange: Exchange, binding: Binding, replies: Replies, requests: Requests
    ) -> None:
        """Make the call; one that is ABORTED is made with the next request."""
        calls = self._streaming if binding.streams else self._unary
        *others, last = requests
        clock = asyncio.get_running_loop().time
        for request in others:
            begin = clock()
            try:
                await calls.make(exchange, binding, replies, request)
            except CallError as error:
                if error.code != Code.ABORTED:
                    raise
            else:
                return
            if exchange.timeout is not None:
                exchange.timeout = max(exchange.timeout - (clock() - begin), 0.0)
        await calls.make(exchange, binding, replies, last)

    def _raw_path(self, exchange: Exchange) -> bytes:
        scope = exchange.scope
        raw: bytes = scope.get("raw_path") or scope["path"].encode()
        raw = raw.split(b"?")[0]
        if len(raw) + len(scope["query_string"]) > self._settings.max_header_bytes:
            raise HttpError("the URL is too long", "URI_TOO_LONG", http=414)
        return raw

    async def _answer_options(
        self, exchange: Exchange, candidates: list[Candidate]
    ) -> None:
        """Respond to OPTIONS; raise HttpError for another method: 405, or 404."""
        methods = self._routing.allowed(candidates, exchange.scope["path"])
        if exchange.method != "OPTIONS":
            raise method_not_allowed(exchange.method, methods)
        methods |= {"OPTIONS", "HEAD"} if methods & {"GET", "*"} else {"OPTIONS"}
        allow = ", ".join(sorted(methods)).encode()
        requested = exchange.head.headers.get(b"access-control-request-method", b"")
        allowed = requested if "*" in methods else allow  # `*` is no wildcard in CORS
        preflight = self._response_headers.preflight(exchange.head, allowed)
        headers = [*PRIVATE, (b"allow", allow), *preflight]
        await self._send(exchange, Response(204, headers, b""))

    async def _build_requests(
        self, exchange: Exchange, binding: Binding, segments: list[str]
    ) -> Requests:
        """Return the request message; raises HttpError.

        If-Match may list several versions: there is one message for each of them.
        """
        headers = exchange.head.headers
        if exchange.method not in _SAFE_METHODS:
            refuse_conditions(binding, headers)
        body = b""
        if binding.takes_body or has_body(headers):
            body = await self._body_reader.read(exchange.receive, headers)
        if body and not binding.takes_body:
            raise HttpError("this method does not accept a request body")
        cookies = (
            [*self._cookies.values(binding, exchange.head)]
            if exchange.cookie_mode
            else ()
        )
        query = exchange.scope["query_string"]
        build = self._builder.build
        if b"if-match" not in headers or "If-Match" not in binding.headers:
            return [build(binding, segments, query, headers, cookies, body)]
        versions = required_versions(headers[b"if-match"].decode("latin-1")) or [""]
        return [
            build(binding, segments, query, headers | condition, cookies, body)
            for version in versions
            for condition in ({b"if-match": version.encode("latin-1")},)
        ]

    def _render_error(self, exchange: Exchange, error: Exception) -> Response:
        """Return the response to an error; an unexpected one is logged."""
        head = exchange.head
        if not isinstance(error, HttpError | CallError):
            extra = {"request_id": head.request_id}
            _log.error("internal error", exc_info=error, extra=extra)
        match = b"if-match" in head.headers
        response = self._error_renderer.response(error, head.request_id, match=match)
        if isinstance(error, CallError):
            metadata = (*error.headers, *error.trailers)
            response.headers += self._response_headers.from_metadata(metadata)
        if exchange.cookie_mode:
            scope, reason = exchange.scope, response.reason
            response.headers += self._cookies.clear_invalid(reason, head, scope)
        return response

    async def _send(self, exchange: Exchange, response: Response) -> None:
        await exchange.send(response, self._response_headers.common(exchange.head))


def _chunks_needed() -> HttpError:
    """Return the error for a stream over HTTP/1.0, which has no chunked coding."""
    return HttpError(
        "a streamed response needs HTTP/1.1 or later",
        "HTTP_VERSION_TOO_OLD",
        http=426,
        headers=[(b"upgrade", b"HTTP/1.1"), (b"connection", b"upgrade")],
    )
