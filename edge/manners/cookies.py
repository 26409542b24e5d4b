"""Tokens of browsers: kept in a cookie that scripts cannot read, never in a body.

Used when a request has `X-Token-Mode: cookie` (OWASP ASVS 3.3, 3.5).
"""

import ipaddress
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, unquote

import orjson
from protobuf import DescField, Message

from edge.bindings import Binding
from edge.codec import Codec
from edge.config import EdgeSettings, TokenCookie
from edge.errors import PERMISSION_DENIED, Header, Refused
from edge.manners.metadata import Head
from edge.manners.negotiation import JSON
from edge.schema.parameters import Parameter, resolve


class TokenCookies:
    """The cookie table of one application, by its bindings."""

    def __init__(
        self, codec: Codec, bindings: Sequence[Binding], settings: EdgeSettings
    ) -> None:
        """Resolve every field of the table; raises FieldPathError naming a bad one."""
        self._debug = settings.debug
        self._table = settings.cookies
        own = (settings.public_url,) if settings.public_url else ()
        self._origins = frozenset(
            origin.rstrip("/").encode() for origin in (*settings.cors_origins, *own)
        )
        self._reads: dict[str, list[tuple[TokenCookie, Parameter]]] = {}
        self._sets: dict[
            str, list[tuple[TokenCookie, Parameter, Parameter | None]]
        ] = {}
        for binding in {binding.method: binding for binding in bindings}.values():
            self._resolve(codec, binding)

    def _resolve(self, codec: Codec, binding: Binding) -> None:
        method = binding.method
        for cookie in self._table:
            if method in cookie.request_fields:
                path = cookie.request_fields[method]
                read = resolve(codec, binding.request, path)
                self._reads.setdefault(method, []).append((cookie, read))
            if method in cookie.reply_fields:
                field = resolve(codec, binding.reply, cookie.reply_fields[method])
                age = cookie.max_age_fields.get(method)
                lives = resolve(codec, binding.reply, age) if age else None
                self._sets.setdefault(method, []).append((cookie, field, lives))

    def wanted(self, head: Head) -> bool:
        """Tell whether a request asks for cookies; raises Refused (403, 415).

        A request that a browser sent from another site is refused, and so is a
        body that a form could have sent.
        """
        if (
            head.headers.get(b"x-token-mode", b"").lower() != b"cookie"
            or not self._table
        ):
            return False
        origin = head.headers.get(b"origin")
        site = head.headers.get(b"sec-fetch-site")
        allowed = origin in self._origins if origin else False
        own = site in (b"same-origin", b"none", None)
        if not allowed and (not own or (origin is not None and site is None)):
            raise Refused(
                "this origin may not use token cookies",
                "ORIGIN_NOT_ALLOWED",
                http=403,
                code=PERMISSION_DENIED,
            )
        if head.headers.get(b"content-length", b"0") != b"0":
            _require_json(head.headers.get(b"content-type", b""))
        return True

    def given(self, binding: Binding, head: Head) -> list[tuple[Parameter, Any]]:
        """Give the request fields that the request's cookies fill."""
        reads = self._reads.get(binding.method)
        if not reads:
            return []
        cookies = _parsed(head.headers.get(b"cookie", b""))
        found = []
        for cookie, parameter in reads:
            for name in (f"__Host-{cookie.name}", cookie.name):
                if name in cookies and (self._debug or name.startswith("__Host-")):
                    found.append((parameter, parameter.convert(cookies[name])))
                    break
        return found

    def take(self, binding: Binding, message: Message, scope: Any) -> list[Header]:
        """Move a reply's tokens into cookies; give the Set-Cookie headers."""
        plain = self._debug and _is_plain_loopback(scope)
        headers = []
        for cookie, parameter, lives in self._sets.get(binding.method, ()):
            holder = _holder(message, parameter.fields)
            token = holder[parameter.fields[-1]] if holder is not None else ""
            if token and holder is not None:
                age = _number(message, lives.fields) if lives else None
                headers.append(_set_cookie(cookie.name, str(token), age, plain=plain))
                del holder[parameter.fields[-1]]
        return headers + [
            _set_cookie(cookie.name, "", 0, plain=plain)
            for cookie in self._table
            if binding.method in cookie.cleared_by
        ]

    def without(self, binding: Binding, body: bytes) -> bytes:
        """Give a JSON body without the members that became cookies."""
        value = orjson.loads(body)
        sent = binding.reply_field
        for _, parameter, _ in self._sets.get(binding.method, ()):
            names, at = parameter.names, value
            if sent is not None and names[0] == sent.json_name:
                names = names[1:]
            for name in names[:-1]:
                at = at.get(name, {})
            at.pop(names[-1], None)
        return orjson.dumps(value)


def _require_json(content_type: bytes) -> None:
    if content_type.partition(b";")[0].strip().lower() != JSON.encode():
        raise Refused(
            f"with token cookies the body must be {JSON}",
            "UNSUPPORTED_MEDIA_TYPE",
            http=415,
        )


def _parsed(header: bytes) -> dict[str, str]:
    """Give the cookies of a request; what is not a pair is left out (RFC 6265 5.4)."""
    pairs = (part.partition("=") for part in header.decode("latin-1").split(";"))
    return {name.strip(): unquote(value.strip()) for name, mark, value in pairs if mark}


def _holder(message: Message, fields: Sequence[DescField]) -> Message | None:
    """Give the message that holds the last of the fields, if there is one."""
    at: Message | None = message
    for found in fields[:-1]:
        at = at[found] if at is not None else None
    return at


def _number(message: Message, fields: Sequence[DescField]) -> int | None:
    holder = _holder(message, fields)
    value = holder[fields[-1]] if holder is not None else 0
    return int(value) or None


def _set_cookie(name: str, value: str, age: int | None, *, plain: bool) -> Header:
    prefix, secure = ("", "") if plain else ("__Host-", "; Secure")
    lives = "" if age is None else f"; Max-Age={age}"
    flags = f"Path=/; HttpOnly{secure}; SameSite=Strict{lives}"
    return b"set-cookie", f"{prefix}{name}={quote(value)}; {flags}".encode()


def _is_plain_loopback(scope: Any) -> bool:
    client = scope.get("client")
    if scope.get("scheme") != "http" or not client:
        return False
    try:
        return ipaddress.ip_address(client[0]).is_loopback
    except ValueError:
        return False
