"""The edge's knobs, general ones only, and the edge's only look at the environment."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import BeforeValidator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCookie:
    """A reply field that a browser keeps as a cookie (`X-Token-Mode: cookie`).

    Methods are "/pkg.Service/Method", fields are dotted proto names within that
    method's reply or request.
    """

    name: str  # without the `__Host-` prefix
    reply_fields: Mapping[str, str] = field(
        default_factory=dict
    )  # method -> field moved to the cookie
    request_fields: Mapping[str, str] = field(
        default_factory=dict
    )  # method -> field filled from it
    max_age_fields: Mapping[str, str] = field(
        default_factory=dict
    )  # method -> reply field, seconds
    cleared_by: frozenset[str] = frozenset()  # methods whose success clears it


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeSettings:
    """Everything about an edge that is not in the descriptors. Times in seconds."""

    title: str = "REST API"
    version: str = "1"
    description: str = ""
    public_url: str = ""  # the origin that browsers see; "" = not known
    docs: bool = False  # serve /docs and /openapi.json
    debug: bool = False  # cookies work on a plain-http loopback
    ready: Callable[[], Awaitable[bool]] | None = None  # answers /readyz

    max_body_bytes: int = 1 * MIB
    max_decompressed_bytes: int = 4 * MIB
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
    created_prefixes: tuple[str, ...] = ("Create", "BatchCreate")  # these answer 201
    public_max_age: Mapping[str, int] = field(default_factory=dict)  # method -> seconds
    public_methods: frozenset[str] = frozenset()  # need no credentials
    rate_limits: Mapping[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # sentences
    cookies: tuple[TokenCookie, ...] = ()


def _split(value: object) -> object:
    """Let a list be written with commas, as operators do."""
    if not isinstance(value, str):
        return value
    return tuple(part.strip() for part in value.split(",") if part.strip())


_List = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]


class Environment(BaseSettings):
    """What a lone `academy edge` process reads from the environment or `.env`.

    Raises pydantic's ValidationError, which names every faulty variable at once.
    """

    model_config = SettingsConfigDict(env_file=".env", extra="ignore", frozen=True)

    http_listen: str = "127.0.0.1:8080"
    cors_origins: _List = ()
    trusted_proxies: _List = ()
    debug: bool = False
    public_url: str = ""
