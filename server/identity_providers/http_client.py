"""HTTP requests to identity providers, with limits on where, how long and how much."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlencode, urlsplit

import httpcore2
import orjson

from server.identity_providers.checked_network import (
    CheckedNetwork,
    IpAddress,
    Resolve,
    is_public,
    resolve_host,
)

TIMEOUT_SECONDS = 5.0
MAX_BODY_SIZE = 1024 * 1024
_HEADERS = {
    "accept": "application/json",
    "accept-encoding": "identity",
    "user-agent": "blatam-academy",
}
_FORM = {"content-type": "application/x-www-form-urlencoded"}
_OK, _BAD_REQUEST = 200, 400
_HTTP_ERRORS = (
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.TimeoutException,
    httpcore2.UnsupportedProtocol,
    OSError,
    TimeoutError,
)


@cache
def _public_authorities() -> ssl.SSLContext:
    """Return a context that trusts the public authorities; reading them is slow."""
    return httpcore2.default_ssl_context()


class RequestFailed(Exception):
    """A provider did not respond as it must; the text names it, without secrets."""


class RequestRefused(Exception):
    """The provider refused a request (400); the text is its error code."""


class ProviderHttp:
    """Requests to one provider: https only, no redirects, 5 s and 1 MiB at most.

    Private addresses are refused unless they are allowed. Plain http is for providers
    on this machine, and needs that, too. `ca_file` replaces the public authorities.
    """

    def __init__(
        self,
        *,
        allow_private_addresses: bool = False,
        ca_file: Path | None = None,
        resolve: Resolve = resolve_host,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        """Raise OSError if the file of authorities cannot be read, or is none."""
        self._allow_private = allow_private_addresses
        self._tls = (
            ssl.create_default_context(cafile=ca_file)
            if ca_file
            else _public_authorities()
        )
        self._resolve = resolve
        self._timeout_seconds = timeout_seconds

    def check_url(self, url: object) -> str:
        """Return the URL if requests may be sent to it. Raises RequestFailed."""
        self._parse(url)
        return str(url)

    async def get(self, url: str, authorization: str = "") -> Mapping[str, Any]:
        """Return the JSON object at a URL. Raises RequestFailed, RequestRefused."""
        headers = {"authorization": authorization} if authorization else {}
        return await self._request("GET", url, headers, b"")

    async def post(
        self, url: str, form: Mapping[str, str], authorization: str = ""
    ) -> Mapping[str, Any]:
        """Send a form; return a JSON object. Raises RequestFailed, RequestRefused."""
        headers = {"authorization": authorization} if authorization else {}
        return await self._request(
            "POST", url, {**_FORM, **headers}, urlencode(form).encode()
        )

    async def _request(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes
    ) -> Mapping[str, Any]:
        parts = self._parse(url)
        place = f"{parts.scheme}://{parts.netloc}{parts.path}"
        try:
            async with asyncio.timeout(self._timeout_seconds):
                status, body = await self._exchange(method, parts, headers, content)
        except _HTTP_ERRORS as error:
            cause = str(error) or type(error).__name__
            raise RequestFailed(f"{place}: {cause}") from error
        if status == _BAD_REQUEST:
            raise RequestRefused(_error_code(body))
        if status != _OK:
            raise RequestFailed(f"{place}: status {status}")
        return _json_object(place, body)

    async def _exchange(
        self,
        method: str,
        parts: SplitResult,
        headers: Mapping[str, str],
        content: bytes,
    ) -> tuple[int, bytes]:
        """Return status and body. A connection of its own: log-ins are rare."""
        network = CheckedNetwork(self._is_allowed(parts), self._resolve)
        async with (
            httpcore2.AsyncConnectionPool(self._tls, network_backend=network) as pool,
            pool.stream(
                method,
                parts.geturl(),
                headers=[*_HEADERS.items(), *headers.items()],
                content=content,
            ) as response,
        ):
            body = bytearray()
            async for chunk in response.aiter_stream():
                body += chunk
                if len(body) > MAX_BODY_SIZE:
                    raise httpcore2.ReadError(f"more than {MAX_BODY_SIZE} bytes")
            return response.status, bytes(body)

    def _is_allowed(self, parts: SplitResult) -> Callable[[IpAddress], bool]:
        def is_allowed(address: IpAddress) -> bool:
            if parts.scheme == "http":
                return self._allow_private and address.is_loopback
            return self._allow_private or is_public(address)

        return is_allowed

    def _parse(self, url: object) -> SplitResult:
        if not isinstance(url, str) or not url.isascii() or not url.isprintable():
            raise RequestFailed("an endpoint is not a URL")
        try:
            parts = urlsplit(url)
            valid = bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc
        except ValueError:
            valid = False
        if not valid or parts.scheme not in self._schemes(parts):
            raise RequestFailed(f"{url:.200}: not an https URL")
        return parts

    def _schemes(self, parts: SplitResult) -> tuple[str, ...]:
        is_local = self._allow_private and _is_loopback(parts.hostname or "")
        return ("https", "http") if is_local else ("https",)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _json_object(place: str, body: bytes) -> Mapping[str, Any]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise RequestFailed(f"{place}: the body is not a JSON object")
    return value


def _error_code(body: bytes) -> str:
    """Return the error code of an OAuth response (RFC 6749 5.2)."""
    try:
        error = orjson.loads(body)["error"]
    except (orjson.JSONDecodeError, KeyError, TypeError, IndexError):
        error = ""
    return error[:100] if isinstance(error, str) and error.isprintable() else ""
