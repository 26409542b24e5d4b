"""Settings of an edge, general ones only; nothing here reads the environment."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edge.observation import App, Observe

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCookie:
    """A token that a browser keeps in a cookie (`X-Token-Mode: cookie`).

    The tables lead from "/pkg.Service/Method" to the dotted proto name of a field in
    that method's reply or request.
    """

    name: str  # without the `__Host-` prefix
    reply_fields: Mapping[str, str] = field(default_factory=dict)  # set the cookie
    request_fields: Mapping[str, str] = field(default_factory=dict)  # read from it
    max_age_fields: Mapping[str, str] = field(default_factory=dict)  # reply's, seconds
    cleared_by: frozenset[str] = frozenset()  # methods whose success clears it
    invalid_reasons: frozenset[str] = frozenset()  # of errors that clear it


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeSettings:
    """What an edge needs to know beside the descriptors. Times are in seconds.

    A table entry for a method that is not in the descriptors is refused at start.
    """

    title: str = "REST API"
    version: str = "1"
    description: str = ""
    public_url: str = ""  # the origin that browsers see; empty: not known
    tls: bool = False  # the listener has TLS, whatever `public_url` is
    docs: bool = False  # serve /docs and /openapi.json
    debug: bool = False  # cookies work on a plain-http loopback
    ready: Callable[[], Awaitable[bool]] | None = None  # for /readyz
    # Called at the end of each request. The method is one of HTTP's and the route a
    # path template or a page; everything else is "_OTHER".
    observe_request: Observe | None = None
    # Wraps what serves every request but those for pages: an ASGI application.
    middleware: Callable[[App], App] | None = None

    max_body_bytes: int = 1 * MIB
    max_decompressed_bytes: int = 1 * MIB
    max_header_bytes: int = 16 * KIB
    max_received_bytes: int = 64 * MIB  # of all bodies that are being received
    body_timeout: float = 30.0  # to receive a whole request body
    body_idle_timeout: float = 10.0  # until its next byte
    default_timeout: float | None = 30.0  # of a unary call without `grpc-timeout`
    stream_timeout: float | None = None  # of a stream without `grpc-timeout`
    max_timeout: float | None = None  # upper bound for `grpc-timeout`
    heartbeat: float = 15.0  # between comments on an idle event stream
    compress_from_bytes: int = 1 * KIB
    retry_after: int = 1  # of a 429 or 503 whose service names no delay

    cors_origins: tuple[str, ...] = ()  # exact, such as "https://app.example"
    trusted_proxies: tuple[str, ...] = ()  # addresses or networks (CIDR)
    serve_trailing_slash: bool = False  # /users/ is /users; else it is not found
    response_headers: frozenset[str] = frozenset()  # metadata names sent as headers

    # Fields with a meaning in HTTP, by their proto names; an empty name: none has it.
    etag_field: str = "etag"  # a resource's version: ETag and If-Match
    request_id_field: str = "request_id"  # a request's: Idempotency-Key
    # A stream's: event ids and Last-Event-ID.
    resume_token_field: str = "resume_token"  # noqa: S105  # a name, no secret

    # Method -> "GET /path", for methods whose files cannot be annotated.
    extra_bindings: Mapping[str, str] = field(default_factory=dict)
    text_pattern: str = ""  # that every text must match, for the OpenAPI document
    info: Mapping[str, Any] = field(default_factory=dict)  # more of OpenAPI's info
    service_order: tuple[str, ...] = ()  # full names, in the order of the document
    access: Mapping[str, str] = field(default_factory=dict)  # method -> who may call it
    step_up: Mapping[str, str] = field(default_factory=dict)  # method -> which log-in
    # The reason of an UNAUTHENTICATED error that asks for another log-in (RFC 9470):
    # `acr_values` and `max_age` of its metadata are sent in WWW-Authenticate.
    step_up_reason: str = ""
    error_reasons: str = ""  # full name of the enum of google.rpc.ErrorInfo reasons
    error_domain: str = ""  # of google.rpc.ErrorInfo in the edge's own errors
    created_prefixes: tuple[str, ...] = ("Create", "BatchCreate")  # these return 201
    public_max_age: Mapping[str, int] = field(default_factory=dict)  # method -> seconds
    public_methods: frozenset[str] = frozenset()  # need no credentials
    rate_limits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    cookies: tuple[TokenCookie, ...] = ()
