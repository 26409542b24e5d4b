"""The edge's knobs, general ones only; nothing here reads the environment."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCookie:
    """A reply field that a browser keeps as a cookie (`X-Token-Mode: cookie`).

    The tables go from "/pkg.Service/Method" to dotted proto names of fields
    within that method's reply or request.
    """

    name: str  # without the `__Host-` prefix
    reply_fields: Mapping[str, str] = field(default_factory=dict)  # become the cookie
    request_fields: Mapping[str, str] = field(default_factory=dict)  # come from it
    max_age_fields: Mapping[str, str] = field(default_factory=dict)  # reply's, seconds
    cleared_by: frozenset[str] = frozenset()  # methods whose success clears it


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeSettings:
    """Everything about an edge that is not in the descriptors. Times in seconds.

    A table for a method that the descriptors do not have is refused at start.
    """

    title: str = "REST API"
    version: str = "1"
    description: str = ""
    public_url: str = ""  # the origin that browsers see; "" = not known
    docs: bool = False  # serve /docs and /openapi.json
    debug: bool = False  # cookies work on a plain-http loopback
    ready: Callable[[], Awaitable[bool]] | None = None  # answers /readyz

    max_body_bytes: int = 1 * MIB
    max_decompressed_bytes: int = 1 * MIB
    max_header_bytes: int = 16 * KIB
    body_timeout: float = 20.0  # to receive a whole request body
    default_timeout: float | None = 30.0  # a unary call's, without `grpc-timeout`
    stream_timeout: float | None = None  # a stream's, without `grpc-timeout`
    max_timeout: float | None = None  # what a caller may ask for at most
    heartbeat: float = 15.0  # between comments on an idle event stream
    compress_from_bytes: int = 1 * KIB

    cors_origins: tuple[str, ...] = ()  # exact, such as "https://app.example"
    trusted_proxies: tuple[str, ...] = ()  # addresses or networks (CIDR)
    serve_trailing_slash: bool = False  # /users/ is /users; else it is not found
    response_headers: frozenset[str] = frozenset()  # metadata names sent on as headers

    # Method -> "GET /path", for methods whose files nobody can annotate.
    extra_bindings: Mapping[str, str] = field(default_factory=dict)
    text_pattern: str = ""  # what the services ask of every text, for the document
    info: Mapping[str, Any] = field(default_factory=dict)  # more of OpenAPI's info
    service_order: tuple[str, ...] = ()  # full names, in the order of the document
    access: Mapping[str, str] = field(default_factory=dict)  # method -> who may call it
    error_reasons: str = ""  # full name of the enum of google.rpc.ErrorInfo reasons
    error_domain: str = ""  # of google.rpc.ErrorInfo in the edge's own refusals
    created_prefixes: tuple[str, ...] = ("Create", "BatchCreate")  # these answer 201
    public_max_age: Mapping[str, int] = field(default_factory=dict)  # method -> seconds
    public_methods: frozenset[str] = frozenset()  # need no credentials
    rate_limits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    cookies: tuple[TokenCookie, ...] = ()
