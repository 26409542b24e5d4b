"""The raw ASGI application behind every binding: each request through its stages."""

import asyncio
import logging
from collections.abc import Awaitable, Container
from functools import partial
from time import perf_counter
from typing import Any

from edge.caching import BoundedCache
from edge.config import EdgeSettings
from edge.errors import Code, HttpError
from edge.exchange import Exchange
from edge.http.cookies import TOKEN_MODE, TokenCookies
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
from edge.observation import METHODS, OTHER
from edge.port import CallError, CallPort
from edge.requests.body import BodyReader
from edge.requests.build import RequestBuilder
from edge.requests.parameters import refuse_conditions
from edge.responses.failures import ErrorRenderer
from edge.responses.reply import (
    NOT_STORED,
    PRIVATE,
    RenderedReplies,
    Replies,
    Response,
)
from edge.responses.streaming import StreamCalls
from edge.responses.unary import UnaryCalls
from edge.routing.bindings import Binding
from edge.routing.route import Candidate, Routing, method_not_allowed
from edge.routing.router import Router
from edge.schema.codec import Codec

_log = logging.getLogger("edge")
Requests = list[bytes]  # serialized, in the order in which they are tried
Url = tuple[str, bytes, bytes]  # HTTP method, path, query
_SAFE_METHODS = ("GET", "HEAD")
_MAX_PLANS = 4_096
_MAX_PLAN_BYTES = 256  # of a URL; a longer one is hardly sent again
_MAX_RENDERED = 1_024


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
        rendered = RenderedReplies(_MAX_RENDERED)
        self._replies = {
            b: Replies(codec, b, settings, rendered) for b in router.bindings
        }
        # By URL: reading one costs 24 Python calls.
        self._plans = BoundedCache[Url, tuple[Binding, Requests]](_MAX_PLANS)
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
                method = exchange.method if exchange.method in METHODS else OTHER
                seconds = perf_counter() - started
                self._observe(method, exchange.route, exchange.status, seconds)

    async def _serve(self, exchange: Exchange) -> None:
        headers, settings = exchange.head.headers, self._settings
        raw_headers = exchange.scope["headers"]
        exchange.metadata = self._request_headers.metadata(exchange.head, raw_headers)
        if not is_valid_host(headers.get(b"host", b"")):
            raise HttpError("the Host header must be a host with an optional port")
        path, requests = self._raw_path(exchange), None
        url = exchange.method, path, exchange.scope["query_string"]
        plain = not (has_body(headers) or TOKEN_MODE in headers)
        plan = self._plans.get(url) if plain else None
        if plan:
            binding, requests = plan
        else:
            matched = await self._match(exchange, path)
            if matched is None:
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
        if requests is None:
            requests = await self._build_requests(exchange, binding, segments)
            if plain and _is_repeatable(binding, url):
                self._plans.add(url, (binding, requests))
        calls = self._streaming if streams else self._unary
        make = partial(calls.make, exchange, binding, replies)
        for request in requests[:-1]:
            if not await self._is_aborted(exchange, make(request)):
                return
        await make(requests[-1])

    async def _match(
        self, exchange: Exchange, path: bytes
    ) -> tuple[Binding, list[str]] | None:
        """Return the binding and the segments of the path; None if it has responded."""
        candidates = self._routing.candidates(path)
        preflight = b"access-control-request-method" in exchange.head.headers
        matched = None
        if exchange.method != "OPTIONS" or not preflight:  # which makes no call
            matched = self._routing.match(candidates, exchange.method)
        if matched is None:
            await self._answer_options(exchange, candidates)
        return matched

    async def _is_aborted(self, exchange: Exchange, call: Awaitable[None]) -> bool:
        """Make a call; return whether it is ABORTED, so that the next one is made."""
        clock = asyncio.get_running_loop().time
        begin = clock()
        try:
            await call
        except CallError as error:
            if error.code != Code.ABORTED:
                raise
        else:
            return False
        if exchange.timeout is not None:
            exchange.timeout = max(exchange.timeout - (clock() - begin), 0.0)
        return True

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


def _is_repeatable(binding: Binding, url: Url) -> bool:
    """Return whether the URL alone says what the request is, each time it is sent."""
    method, path, query = url
    if method not in _SAFE_METHODS or binding.takes_body or binding.headers:
        return False
    return len(path) + len(query) <= _MAX_PLAN_BYTES


def _chunks_needed() -> HttpError:
    """Return the error for a stream over HTTP/1.0, which has no chunked coding."""
    return HttpError(
        "a streamed response needs HTTP/1.1 or later",
        "HTTP_VERSION_TOO_OLD",
        http=426,
        headers=[(b"upgrade", b"HTTP/1.1"), (b"connection", b"upgrade")],
    )
