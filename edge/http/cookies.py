"""Tokens of browsers: in a cookie that scripts cannot read, never in a body.

Used when a request has `X-Token-Mode: cookie` (OWASP ASVS 3.3, 3.5).
"""

import ipaddress
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote, unquote

import orjson
from protobuf import Message

from edge.config import EdgeSettings, TokenCookie
from edge.errors import Code, Header, HttpError
from edge.http.negotiation import JSON, media_type, unsupported
from edge.http.request_headers import RequestHead, has_body
from edge.requests.merging import value_at
from edge.requests.parameters import FieldValue, text_value
from edge.routing.bindings import Binding, BindingError
from edge.schema.fields import Parameter, resolve

TOKEN_MODE = b"x-token-mode"


class TokenCookies:
    """The token cookies of one application."""

    def __init__(self, bindings: Sequence[Binding], settings: EdgeSettings) -> None:
        """Resolve every field of the table; raises FieldPathError if one is unknown."""
        self._debug = settings.debug
        self._table = settings.cookies
        origins = (*settings.cors_origins, settings.public_url)
        self._origins = {origin.rstrip("/").encode() for origin in origins if origin}
        self._reads: dict[str, list[tuple[TokenCookie, Parameter]]] = {}
        self._sets: dict[
            str, list[tuple[TokenCookie, Parameter, Parameter | None]]
        ] = {}
        for binding in {binding.method: binding for binding in bindings}.values():
            self._reads[binding.method] = [
                (
                    cookie,
                    resolve(binding.request, cookie.request_fields[binding.method]),
                )
                for cookie in self._table
                if binding.method in cookie.request_fields
            ]
            self._sets[binding.method] = [*self._resolved(binding)]
            if binding.streams and self._sets[binding.method]:
                message = f"{binding.method} is a stream: a stream cannot set cookies"
                raise BindingError(message)

    def _resolved(
        self, binding: Binding
    ) -> Iterator[tuple[TokenCookie, Parameter, Parameter | None]]:
        for cookie in self._table:
            if path := cookie.reply_fields.get(binding.method):
                age = cookie.max_age_fields.get(binding.method)
                lifetime = resolve(binding.reply, age) if age else None
                yield cookie, resolve(binding.reply, path), lifetime

    def is_requested(self, head: RequestHead) -> bool:
        """Return whether a request uses token cookies; raises HttpError (403, 415).

        A request that a browser sent from another site is refused, and so is a
        body that an HTML form can send.
        """
        headers = head.headers
        mode = headers.get(TOKEN_MODE, b"").lower()
        if not self._table or not mode:
            return False
        if mode != b"cookie":  # a typing error must not put a token into a body
            raise HttpError("X-Token-Mode must be cookie")
        origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site")
        same = site in (b"same-origin", b"none") or (site is None and origin is None)
        if not same and origin not in self._origins:
            raise HttpError(
                "this origin may not use token cookies: "
                "the operator can add it to CORS_ORIGINS",
                "ORIGIN_NOT_ALLOWED",
                http=403,
                code=Code.PERMISSION_DENIED,
            )
        kind, _ = media_type(headers.get(b"content-type", b""))
        if kind != JSON and has_body(headers):
            raise unsupported(f"with token cookies the body must be {JSON}")
        return True

    def values(self, binding: Binding, head: RequestHead) -> Iterator[FieldValue]:
        """Yield the request fields that cookies fill."""
        reads = self._reads[binding.method]
        cookies = _parsed(head.headers.get(b"cookie", b"")) if reads else {}
        for cookie, parameter in reads:
            text = self._value(cookie, cookies)
            if text is not None:
                yield text_value(parameter, text)

    def _value(self, cookie: TokenCookie, cookies: dict[str, str]) -> str | None:
        text = cookies.get(f"__Host-{cookie.name}")
        if text is None and self._debug:
            text = cookies.get(cookie.name)
        return text

    def clear_invalid(
        self, reason: str, head: RequestHead, scope: Any
    ) -> Iterator[Header]:
        """Yield headers that clear the request's cookies that an error calls invalid.

        The browser would send such a cookie again with every request.
        """
        cookies = _parsed(head.headers.get(b"cookie", b""))
        plain = self._debug and _is_plain_loopback(scope)
        for cookie in self._table:
            sent = self._value(cookie, cookies) is not None
            if sent and reason in cookie.invalid_reasons:
                yield _set_cookie(cookie.name, "", 0, plain=plain)

    def extract(
        self, binding: Binding, message: Message, scope: Any
    ) -> Iterator[Header]:
        """Move a reply's tokens into cookies; yield the headers that do it."""
        plain = self._debug and _is_plain_loopback(scope)
        for cookie, parameter, lifetime in self._sets[binding.method]:
            parent = value_at(message, parameter.fields[:-1])
            token = parent[parameter.last.desc] if parent is not None else ""
            if token:
                age = value_at(message, lifetime.fields) if lifetime else None
                yield _set_cookie(cookie.name, str(token), age or None, plain=plain)
                del parent[parameter.last.desc]
        for cookie in self._table:
            if binding.method in cookie.cleared_by:
                yield _set_cookie(cookie.name, "", 0, plain=plain)

    def without(self, binding: Binding, body: bytes) -> bytes:
        """Return a JSON body without the members that became cookies."""
        value = orjson.loads(body)
        for _, parameter, _ in self._sets[binding.method]:
            inner = parameter.fields[0] is binding.reply_field
            *above, last = parameter.names[1:] if inner else parameter.names
            parent = value
            for name in above:
                parent = parent.get(name, {})
            parent.pop(last, None)
        return orjson.dumps(value)


def _parsed(header: bytes) -> dict[str, str]:
    """Return the cookies of a request; what is not a pair is ignored (RFC 6265 5.4)."""
    pairs = (part.partition("=") for part in header.decode("latin-1").split(";"))
    return {name.strip(): unquote(value.strip()) for name, mark, value in pairs if mark}


def _set_cookie(name: str, value: str, age: int | None, *, plain: bool) -> Header:
    prefix, secure = ("", "") if plain else ("__Host-", "; Secure")
    max_age = "" if age is None else f"; Max-Age={age}"
    flags = f"Path=/; HttpOnly{secure}; SameSite=Strict{max_age}"
    return b"set-cookie", f"{prefix}{name}={quote(value)}; {flags}".encode()


def _is_plain_loopback(scope: Any) -> bool:
    try:
        address = ipaddress.ip_address(scope["client"][0])
    except (KeyError, TypeError, ValueError):
        return False
    return scope.get("scheme") == "http" and address.is_loopback
