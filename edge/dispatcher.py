"""The one raw ASGI application behind every binding: request in, response out."""

import asyncio
import logging
from typing import Any

from protobuf import Message

from edge.bindings import Binding, Router
from edge.codec import Codec
from edge.config import EdgeSettings
from edge.errors import (
    NOT_FOUND,
    UNIMPLEMENTED,
    ErrorReply,
    Header,
    Refused,
    StatusReader,
    internal,
    of_refusal,
)
from edge.manners.cookies import TokenCookies
from edge.manners.cors import Cors
from edge.manners.metadata import Head, HeadReader, deadline, response_headers
from edge.manners.negotiation import (
    JSON,
    PROTOBUF,
    body_kind,
    choose,
    decompress,
    too_large,
)
from edge.port import CallError, CallPort, Metadata
from edge.reply import (
    NOT_MODIFIED,
    PRIVATE,
    SECRET,
    Plan,
    Renderer,
    Response,
    is_unchanged,
    packed,
    plan,
)
from edge.request import Given, RequestBuilder, is_raw_body, split_path
from edge.streams import Framing, Gone, Pump, Raw, Receive, Send, framing, watched

_log = logging.getLogger("edge")
_SAFE = frozenset(("GET", "HEAD"))


class Call:
    """One HTTP request on its way through the edge."""

    __slots__ = ("binding", "cookies", "head", "receive", "scope", "segments", "send")

    def __init__(self, scope: Any, receive: Receive, send: Send, head: Head) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send
        self.head = head
        self.cookies = False  # tokens travel in cookies
        self.binding: Binding | None = None
        self.segments: list[str] = []


class Dispatcher:
    """Serves every binding of one application."""

    def __init__(
        self, codec: Codec, router: Router, port: CallPort, settings: EdgeSettings
    ) -> None:
        """Prepare everything that calls need; raises ValueError on a bad table."""
        self._codec = codec
        self._router = router
        self._port = port
        self._settings = settings
        self._heads = HeadReader(settings)
        self._cors = Cors(settings)
        self._builder = RequestBuilder(codec)
        self._renderer = Renderer(codec)
        self._errors = StatusReader(codec.registry)
        self._tokens = TokenCookies(codec, router.bindings, settings)
        self._plans: dict[Binding, Plan] = {
            binding: plan(binding, settings) for binding in router.bindings
        }

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer one HTTP request; no exception but a cancellation leaves."""
        head = self._heads.read(scope)
        call = Call(scope, receive, send, head)
        try:
            await self._serve(call)
        except Gone:
            return
        except Refused as refused:
            await self._send_error(call, of_refusal(refused, head.request_id))
        except CallError as error:
            await self._send_error(call, self._of_call(call, error))
        except Exception:
            _log.exception("internal error", extra={"request_id": head.request_id})
            await self._send_error(call, internal(head.request_id))

    async def _serve(self, call: Call) -> None:
        head, headers = call.head, call.head.headers
        self._heads.fill_metadata(head, call.scope["headers"])
        binding = self._route(call)
        if binding is None:
            await self._without_binding(call)
            return
        made = self._plans[binding]
        media = choose(headers.get(b"accept"), made.offers)
        call.cookies = self._tokens.wanted(head)
        settings = self._settings
        default = (
            settings.stream_timeout if binding.streams else settings.default_timeout
        )
        timeout = deadline(headers.get(b"grpc-timeout"), default, settings.max_timeout)
        request = await self._request(call, binding)
        if binding.streams:
            await self._stream(call, binding, request, media, timeout)
        else:
            await self._unary(call, binding, request, media, timeout)

    def _route(self, call: Call) -> Binding | None:
        """Find the binding of a request; HEAD is GET without a body."""
        scope, method = call.scope, call.scope["method"]
        raw = _raw_path(scope)
        if len(raw) + len(scope["query_string"]) > self._settings.max_header_bytes:
            raise Refused("the address is too long", "URI_TOO_LONG", http=414)
        call.segments, literals = split_path(raw)
        found = self._find(call, method, literals)
        slashed = self._settings.serve_trailing_slash and literals[-1:] == [""]
        if found is None and slashed and len(literals) > 1:
            call.segments = call.segments[:-1]
            found = self._find(call, method, literals[:-1])
        call.binding = found
        return found

    def _find(self, call: Call, method: str, literals: list[str]) -> Binding | None:
        """Look a path up, first with the verb that its last colon may begin."""
        last = literals[-1] if literals else ""
        if ":" in last:
            rest, _, verb = last.rpartition(":")
            found = self._found(method, [*literals[:-1], rest], verb) if verb else None
            if found:
                cut = call.segments[-1].rpartition(":")[0]
                call.segments = [*call.segments[:-1], cut]
                return found
        return self._found(method, literals, "")

    def _found(self, method: str, literals: list[str], verb: str) -> Binding | None:
        found = self._router.find(method, literals, verb)
        if found is None and method == "HEAD":
            return self._router.find("GET", literals, verb)
        return found

    async def _without_binding(self, call: Call) -> None:
        """Answer OPTIONS; else refuse: 405 for a known path, 404 for no such path."""
        method, literals = call.scope["method"], split_path(_raw_path(call.scope))[1]
        bound = self._router.allowed(literals, "")
        if literals and ":" in literals[-1]:
            rest, _, verb = literals[-1].rpartition(":")
            bound |= (
                self._router.allowed([*literals[:-1], rest], verb) if verb else set()
            )
        if not bound:
            raise Refused(
                "there is nothing at this path",
                "PATH_NOT_FOUND",
                http=404,
                code=NOT_FOUND,
            )
        if method == "OPTIONS":
            allowed = sorted(bound | {"OPTIONS"} | ({"HEAD"} & _head_of(bound)))
            headers = [*PRIVATE, (b"allow", ", ".join(allowed).encode())]
            headers += self._cors.preflight(call.head.headers, allowed)
            await self._send(call, Response(204, headers, b""))
            return
        raise Refused(
            f"this path does not take {method}",
            "METHOD_NOT_ALLOWED",
            http=405,
            code=UNIMPLEMENTED,
            headers=[(b"allow", ", ".join(sorted(bound)).encode())],
        )

    async def _request(self, call: Call, binding: Binding) -> bytes:
        """Give the request message; the plainest requests take the short way."""
        headers, query = call.head.headers, call.scope["query_string"]
        given = self._header_values(binding, headers)
        sent = b"transfer-encoding" in headers or (
            headers.get(b"content-length", b"0") != b"0"
        )
        unsaid = b"content-length" not in headers and binding.takes_body
        if not (query or given or sent or unsaid or call.cookies):
            return self._builder.from_path(binding, call.segments)
        body = await self._body(call) if sent or unsaid else b""
        if body and not binding.takes_body:
            raise Refused("this method takes no body")
        cookies = self._tokens.given(binding, call.head) if call.cookies else []
        read = self._read(binding, headers, body) if body else None
        return self._builder.build(binding, call.segments, query, given, cookies, read)

    @staticmethod
    def _header_values(binding: Binding, headers: dict[bytes, bytes]) -> list[Given]:
        """Give the request fields that HTTP's own headers fill."""
        given: list[Given] = []
        if binding.etag and b"if-match" in headers:
            tag = _strong_tag(headers[b"if-match"])
            if tag:
                given.append((binding.etag, tag))
        if binding.request_id and b"idempotency-key" in headers:
            text = headers[b"idempotency-key"].decode("latin-1").strip()
            given.append((binding.request_id, text.strip('"')))
        if binding.resume and b"last-event-id" in headers:
            token = headers[b"last-event-id"].decode("utf-8", "replace")
            given.append((binding.resume, token))
        return given

    async def _body(self, call: Call) -> bytes:
        """Receive a request body, within its limits of size and time."""
        limit = self._settings.max_body_bytes
        headers = call.head.headers
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            raise Refused("content-length is not a number")
        if int(length) > limit:
            raise too_large(limit)
        try:
            async with asyncio.timeout(self._settings.body_timeout):
                body = await _received(call.receive, limit)
        except TimeoutError:
            raise Refused(
                "the body did not arrive in time", "REQUEST_TIMEOUT", http=408
            ) from None
        most = self._settings.max_decompressed_bytes
        return decompress(body, headers.get(b"content-encoding"), most)

    def _read(
        self, binding: Binding, headers: dict[bytes, bytes], body: bytes
    ) -> tuple[Message, Any]:
        content_type = headers.get(b"content-type")
        if is_raw_body(binding):
            told = (content_type or b"application/octet-stream").decode("latin-1")
            return self._builder.read_raw(binding, body, told)
        offers = (JSON, PROTOBUF) if binding.body_shape else (JSON,)
        if body_kind(content_type, offers) == PROTOBUF:
            return self._builder.read_binary(binding, body)
        return self._builder.read_json(binding, body)

    async def _unary(
        self,
        call: Call,
        binding: Binding,
        request: bytes,
        media: str,
        timeout: float | None,  # noqa: ASYNC109  # gRPC's word: the callee keeps it
    ) -> None:
        metadata = call.head.metadata
        reply = await watched(
            self._port.unary(
                binding.method, request, metadata=metadata, timeout=timeout
            ),
            call.receive,
            timeout,
        )
        message = binding.reply.type.from_binary(reply.message)
        cookies = (
            self._tokens.take(binding, message, call.scope) if call.cookies else []
        )
        method, headers = call.scope["method"], call.head.headers
        response = self._renderer.response(
            binding, self._plans[binding], message, media, method
        )
        response.headers += response_headers(
            reply.headers, self._settings.response_headers
        )
        if call.cookies:
            response.packs = False
            if media == JSON and response.body and binding.resource is not None:
                response.body = self._tokens.without(binding, response.body)
            response.headers = [*SECRET, *response.headers[len(PRIVATE) :], *cookies]
        held = headers.get(b"if-none-match") if method in _SAFE else None
        if held is not None and is_unchanged(held, response.headers):
            response.status, response.body = NOT_MODIFIED, b""
        await packed(
            response,
            headers.get(b"accept-encoding"),
            self._settings.compress_from_bytes,
        )
        await self._send(call, response)

    async def _stream(
        self,
        call: Call,
        binding: Binding,
        request: bytes,
        media: str,
        timeout: float | None,  # noqa: ASYNC109  # gRPC's word: the callee keeps it
    ) -> None:
        """Send a stream; its first message is awaited before its status is said."""
        reply = self._port.server_stream(
            binding.method, request, metadata=call.head.metadata, timeout=timeout
        )
        pump = Pump(aiter(reply), call.receive, self._settings.heartbeat)
        try:
            message = await pump.first(timeout)
            frames = self._frames(binding, media, message)
            start = [
                *self._plans[binding].headers,
                (b"content-type", frames.content_type.encode()),
                *response_headers(reply.headers, self._settings.response_headers),
                (b"x-accel-buffering", b"no"),
                *self._common(call),
            ]
            frame = (
                self._frame(binding, frames, message) if message is not None else b""
            )
            await call.send(
                {"type": "http.response.start", "status": 200, "headers": start}
            )
            if call.scope["method"] == "HEAD":
                await _part(call.send, b"", last=True)
            else:
                await _part(call.send, frame)
                await self._pour(call, binding, pump, frames, ended=message is None)
        finally:
            await pump.close()

    async def _pour(
        self, call: Call, binding: Binding, pump: Pump, frames: Framing, *, ended: bool
    ) -> None:
        """Send what follows the first message, and how it ended."""

        async def beat() -> None:
            await _part(call.send, frames.heartbeat)

        try:
            async for message in pump.rest(beat if frames.heartbeat else None):
                await _part(call.send, self._frame(binding, frames, message))
            last = frames.end()
        except CallError as error:
            last = frames.error(self._of_call(call, error).json)
        except Gone:
            raise
        except Exception:
            request_id = call.head.request_id
            _log.exception("internal error", extra={"request_id": request_id})
            last = frames.error(internal(request_id).json)
        await _part(call.send, last, last=True)

    def _frames(self, binding: Binding, media: str, first: bytes | None) -> Framing:
        if not binding.raw_reply:
            return framing(media)
        message = binding.reply.type.from_binary(first or b"")
        part = self._plans[binding].part(message)
        return Raw(self._renderer.content(binding, message, part, media)[1])

    def _frame(self, binding: Binding, frames: Framing, wire: bytes) -> bytes:
        message: Any = binding.reply.type.from_binary(wire)
        part = self._plans[binding].part(message)
        text, _ = self._renderer.content(binding, message, part, JSON)
        token: str = message.resume_token if binding.has_resume else ""
        return frames.message(text, token)

    def _of_call(self, call: Call, error: CallError) -> ErrorReply:
        if_match = b"if-match" in call.head.headers
        reply = self._errors.reply(error, call.head.request_id, if_match=if_match)
        held: Metadata = (*error.headers, *error.trailers)
        reply.headers += response_headers(held, self._settings.response_headers)
        return reply

    async def _send_error(self, call: Call, error: ErrorReply) -> None:
        base = SECRET if call.cookies else PRIVATE
        kind = (b"content-type", JSON.encode())
        headers = [*base, kind, *error.headers]
        await self._send(call, Response(error.http, headers, error.json))

    def _common(self, call: Call) -> list[Header]:
        """Give the headers that every answer has."""
        request_id = (b"x-request-id", call.head.request_id.encode())
        return [request_id, *self._cors.headers(call.head.headers.get(b"origin"))]

    async def _send(self, call: Call, response: Response) -> None:
        headers = [*response.headers, *self._common(call)]
        if response.status not in (204, NOT_MODIFIED):
            headers.append((b"content-length", b"%d" % len(response.body)))
        start = {
            "type": "http.response.start",
            "status": response.status,
            "headers": headers,
        }
        await call.send(start)
        body = b"" if call.scope["method"] == "HEAD" else response.body
        await call.send({"type": "http.response.body", "body": body})


def _raw_path(scope: Any) -> bytes:
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    return raw.partition(b"?")[0]


def _head_of(bound: set[str]) -> set[str]:
    return {"HEAD"} if bound & {"GET", "*"} else set()


def _strong_tag(if_match: bytes) -> str:
    """Give the one version that If-Match asks for; "" asks for any (RFC 9110 13.1.1).

    A weak tag is of an answer that has no version, so it never matches: 412.
    """
    text = if_match.decode("latin-1").strip()
    if text == "*":
        return ""
    if text.startswith("W/") or "," in text:
        raise Refused(
            "If-Match takes one strong entity tag or *", "ETAG_MISMATCH", http=412
        )
    return text.strip('"')


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
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def _part(send: Send, body: bytes, *, last: bool = False) -> None:
    if body or last:
        await send({"type": "http.response.body", "body": body, "more_body": not last})
