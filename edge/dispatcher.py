"""The one raw ASGI application behind every binding: request in, response out."""

import asyncio
import logging
from collections.abc import Container, Iterator
from contextlib import aclosing
from typing import Any
from urllib.parse import unquote

from edge.bindings import Binding, Router, pick
from edge.codec import Codec
from edge.config import EdgeSettings
from edge.errors import Code, Header, HttpError
from edge.http.cookies import TokenCookies
from edge.http.headers import HeaderPolicy, RequestHead, deadline, has_body
from edge.http.negotiation import JSON, choose, decompress, too_large
from edge.http.streams import (
    RAW,
    DisconnectGuard,
    DisconnectMonitor,
    Framing,
    Gone,
    Receive,
    Send,
    paced,
)
from edge.port import CallError, CallPort, Metadata, StreamReply
from edge.reply import (
    NOT_MODIFIED,
    PRIVATE,
    SECRET,
    Failures,
    Replies,
    Response,
    is_unchanged,
    pack,
)
from edge.request import RequestBuilder, fits, refuse_conditions, split_path

_log = logging.getLogger("edge")
Reading = tuple[list[str], list[str], str]  # segments, literals, verb


class Call:
    """One HTTP request on its way through the edge."""

    def __init__(
        self, scope: Any, receive: Receive, send: Send, head: RequestHead
    ) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.receive = receive
        self.send = send
        self.head = head
        self.metadata: Metadata = ()
        self.cookies = False  # tokens travel in cookies
        self.timeout: float | None = None
        self.media = ""  # of the answer
        self.begun = False  # a stream's status is said


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
        """Prepare everything that calls need; raises ValueError on a bad table.

        `pages` are paths that somebody else serves to GET.
        """
        self._pages = pages
        self._router = router
        self._port = port
        self._settings = settings
        self._header_policy = HeaderPolicy(settings)
        self._disconnect_monitor = DisconnectMonitor()
        self._builder = RequestBuilder(codec)
        self._failures = Failures(codec.registry, settings.error_domain)
        self._tokens = TokenCookies(router.bindings, settings)
        self._replies = {b: Replies(codec, b, settings) for b in router.bindings}

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer one HTTP request; no exception but a cancellation leaves."""
        call = Call(scope, receive, send, self._header_policy.read(scope))
        try:
            await self._serve(call)
        except Gone:
            return
        except Exception as error:  # each has its response, foreseen or not
            response = self._failed(call, error)
            base = SECRET if call.cookies else PRIVATE
            response.headers[:0] = *base, (b"content-type", JSON.encode())
            await self._send(call, response)

    async def _serve(self, call: Call) -> None:
        headers, settings = call.head.headers, self._settings
        call.metadata = self._header_policy.metadata(call.head, call.scope["headers"])
        raw = (call.scope.get("raw_path") or call.scope["path"].encode()).split(b"?")[0]
        if len(raw) + len(call.scope["query_string"]) > settings.max_header_bytes:
            raise HttpError("the address is too long", "URI_TOO_LONG", http=414)
        readings = self._readings(*split_path(raw))
        asks_first = b"access-control-request-method" in headers
        if call.method == "OPTIONS" and asks_first:  # a preflight runs nothing
            await self._without_binding(call, readings)
            return
        found = next(self._routes(readings, call.method), None)
        if found is None:
            await self._without_binding(call, readings)
            return
        binding, segments = found
        call.media = choose(headers.get(b"accept"), self._replies[binding].offers)
        call.cookies = self._tokens.wanted(call.head)
        streams = binding.streams
        default = settings.stream_timeout if streams else settings.default_timeout
        asked = headers.get(b"grpc-timeout")
        call.timeout = deadline(asked, default, settings.max_timeout)
        if streams and call.scope.get("http_version") == "1.0":  # it has no chunks
            raise HttpError(
                "a stream needs HTTP/1.1",
                "HTTP_VERSION_TOO_OLD",
                http=426,
                headers=[(b"upgrade", b"HTTP/1.1"), (b"connection", b"upgrade")],
            )
        request = await self._request(call, binding, segments)
        await (self._stream if streams else self._unary)(call, binding, request)

    def _readings(self, segments: list[str], literals: list[str]) -> list[Reading]:
        """Give the ways to read a path; a last slash may mean nothing."""
        found = _verbs(segments, literals)
        if self._settings.serve_trailing_slash and literals[1:][-1:] == [""]:
            found += _verbs(segments[:-1], literals[:-1])
        return found

    def _routes(
        self, readings: list[Reading], method: str = ""
    ) -> Iterator[tuple[Binding, list[str]]]:
        """Give the bindings of a path, and its segments; all without a method.

        One beyond the closest leaf must take the path's values: `/users/me` is no
        user's id, so what `/users/me` has no method for is not tried as one.
        """
        closest = True
        for segments, path, verb in readings:
            for methods in self._router.find(path, verb):
                found = pick(methods, method) if method else None
                for binding in (found,) if method else methods.values():
                    if binding and (closest or fits(binding, segments)):
                        yield binding, segments
                closest = False

    async def _without_binding(self, call: Call, readings: list[Reading]) -> None:
        """Answer OPTIONS; else refuse: 405 for a known path, 404 for no such path."""
        bound = {binding.verb for binding, _ in self._routes(readings)}
        if not bound and call.scope["path"] in self._pages:
            bound = {"GET"}
        if not bound:
            told = "there is nothing at this path"
            raise HttpError(told, "PATH_NOT_FOUND", http=404, code=Code.NOT_FOUND)
        if call.method == "OPTIONS":
            bound |= {"OPTIONS", "HEAD"} if bound & {"GET", "*"} else {"OPTIONS"}
        allow = ", ".join(sorted(bound)).encode()
        if call.method == "OPTIONS":
            asked = call.head.headers.get(b"access-control-request-method", b"")
            allowed = asked if "*" in bound else allow  # there `*` is no wildcard
            preflight = self._header_policy.preflight(call.head, allowed)
            headers = [*PRIVATE, (b"allow", allow), *preflight]
            await self._send(call, Response(204, headers, b""))
            return
        raise HttpError(
            f"this path does not take {call.method}",
            "METHOD_NOT_ALLOWED",
            http=405,
            code=Code.UNIMPLEMENTED,
            headers=[(b"allow", allow)],
        )

    async def _request(
        self, call: Call, binding: Binding, segments: list[str]
    ) -> bytes:
        """Give the request message."""
        headers = call.head.headers
        if call.method not in ("GET", "HEAD"):
            refuse_conditions(binding, headers)
        sent = binding.takes_body or has_body(headers)
        body = await self._body(call) if sent else b""
        if body and not binding.takes_body:
            raise HttpError("this method takes no body")
        cookies = [*self._tokens.given(binding, call.head)] if call.cookies else ()
        query = call.scope["query_string"]
        return self._builder.build(binding, segments, query, headers, cookies, body)

    async def _body(self, call: Call) -> bytes:
        """Receive a request body, within its limits of size and time."""
        limit, headers = self._settings.max_body_bytes, call.head.headers
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            raise HttpError("content-length is not a number")
        if len(length) > 18 or int(length) > limit:
            raise too_large(limit)
        try:
            async with asyncio.timeout(self._settings.body_timeout):
                body = await _received(call.receive, limit)
        except TimeoutError:
            told = "the body did not arrive in time"
            raise HttpError(told, "REQUEST_TIMEOUT", http=408) from None
        most = self._settings.max_decompressed_bytes
        return decompress(body, headers.get(b"content-encoding"), most)

    async def _unary(self, call: Call, binding: Binding, request: bytes) -> None:
        method, metadata, timeout = binding.method, call.metadata, call.timeout
        with DisconnectGuard(self._disconnect_monitor, call.receive, timeout):
            reply = await self._port.unary(
                method, request, metadata=metadata, timeout=timeout
            )
        message = binding.reply.type.from_binary(reply.message)
        cookies: list[Header] = []
        if call.cookies:
            cookies = [*self._tokens.take(binding, message, call.scope)]
        response = self._replies[binding].response(message, call.media, call.method)
        response.headers += self._header_policy.sent_on(reply.headers)
        if call.cookies:
            if call.media == JSON and response.body and binding.resource is not None:
                response.body = self._tokens.without(binding, response.body)
            response.headers = [*SECRET, *response.headers[len(PRIVATE) :], *cookies]
        headers = call.head.headers
        small = len(response.body) < self._settings.compress_from_bytes
        packs = not (small or call.cookies)
        if packs:
            response.headers.append((b"vary", b"Accept-Encoding"))
        held = headers.get(b"if-none-match") if call.method in ("GET", "HEAD") else None
        if held is not None and is_unchanged(held, response.headers):
            response.status, response.body = NOT_MODIFIED, b""
        elif packs:
            await pack(response, headers.get(b"accept-encoding"))
        await self._send(call, response)

    async def _stream(self, call: Call, binding: Binding, request: bytes) -> None:
        """Send a stream; its first message is awaited before its status is said."""
        framing = self._replies[binding].framing(call.media)
        reply = self._port.server_stream(
            binding.method, request, metadata=call.metadata, timeout=call.timeout
        )
        try:
            with DisconnectGuard(self._disconnect_monitor, call.receive, call.timeout):
                await self._pour(call, binding, reply, framing)
            last = framing.end
        except Gone:
            raise
        except Exception as error:
            if not call.begun:
                raise
            last = framing.last(self._failed(call, error).body)
            if framing is RAW:  # an error can only break it off
                raise Gone from None
        await _part(call, last, last=True)

    async def _pour(
        self, call: Call, binding: Binding, reply: StreamReply, framing: Framing
    ) -> None:
        """Send the messages; HEAD asks for what is known with the first one."""
        replies = self._replies[binding]
        idle = self._settings.heartbeat if framing.heartbeat else None
        async with aclosing(paced(aiter(reply), idle)) as messages:
            async for message in messages:
                if message is None:
                    await _part(call, framing.heartbeat if call.begun else b"")
                    continue
                text, token, kind = replies.item(message)
                frame = framing.frame(text, token, first=not call.begun)
                await self._begin(call, binding, reply, kind)
                await _part(call, frame)
                if call.method == "HEAD":
                    return
        if not call.begun:
            await self._begin(call, binding, reply, call.media)
            await _part(call, framing.start)

    async def _begin(
        self, call: Call, binding: Binding, reply: StreamReply, kind: str
    ) -> None:
        if not call.begun:
            call.begun = True
            media = kind if binding.raw_reply else call.media
            headers = [
                *(SECRET if call.cookies else self._replies[binding].headers),
                (b"content-type", media.encode()),
            ]
            headers += self._header_policy.sent_on(reply.headers)
            headers.append((b"x-accel-buffering", b"no"))
            await self._start(call, Response(200, headers, b""))

    def _failed(self, call: Call, error: Exception) -> Response:
        """Give the response to an error; what nobody foresaw is logged."""
        head = call.head
        if not isinstance(error, HttpError | CallError):
            extra = {"request_id": head.request_id}
            _log.error("internal error", exc_info=error, extra=extra)
        match = b"if-match" in head.headers
        response = self._failures.response(error, head.request_id, match=match)
        if isinstance(error, CallError):
            held = (*error.headers, *error.trailers)
            response.headers += self._header_policy.sent_on(held)
        return response

    async def _start(self, call: Call, response: Response) -> None:
        headers = [*response.headers, *self._header_policy.common(call.head)]
        start = "http.response.start"
        event = {"type": start, "status": response.status, "headers": headers}
        await call.send(event)

    async def _send(self, call: Call, response: Response) -> None:
        body = response.body
        if response.status not in (204, NOT_MODIFIED):
            response.headers.append((b"content-length", b"%d" % len(body)))
        await self._start(call, response)
        body = b"" if call.method == "HEAD" else body
        await call.send({"type": "http.response.body", "body": body})


def _verbs(segments: list[str], literals: list[str]) -> list[Reading]:
    """Give the ways to read a path whose last colon may begin a verb."""
    whole = (segments, literals, "")
    # as sent: an escaped colon is a value's own
    rest, colon, verb = segments[-1].rpartition(":") if segments else ("", "", "")
    if not colon or not verb:
        return [whole]
    cut, literal = [*segments[:-1], rest], unquote(rest, errors="surrogateescape")
    return [(cut, [*literals[:-1], literal], unquote(verb)), whole]


async def _received(receive: Receive, limit: int) -> bytes:
    parts, size, more = [], 0, True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise Gone
        part: bytes = event.get("body", b"")
        size += len(part)
        if size > limit:
            raise too_large(limit)
        parts.append(part)
        more = event.get("more_body", False)
    return b"".join(parts)


async def _part(call: Call, body: bytes, *, last: bool = False) -> None:
    body = b"" if call.method == "HEAD" else body
    if body or last:
        event = {"type": "http.response.body", "body": body, "more_body": not last}
        await call.send(event)
