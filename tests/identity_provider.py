"""An OpenID Connect provider whose every response a test can change."""

import asyncio
import json
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from ssl import SSLContext
from time import time
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from server.identity_providers.http_client import ProviderHttp
from server.identity_providers.provider import Client, OpenIdProvider
from tests.fakes import Clock

CLIENT_ID, CLIENT_SECRET = "academy", "s3cret/of the:client"
Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def jwk_of(key: Key, algorithm: str, kid: str) -> dict[str, Any]:
    """Return the public part of a key."""
    to_jwk = jwt.get_algorithm_by_name(algorithm).to_jwk
    public: dict[str, Any] = json.loads(to_jwk(key.public_key()))
    public.pop("key_ops", None)
    return {**public, "kid": kid, "use": "sig", "alg": algorithm}


@dataclass(frozen=True, slots=True)
class Response:
    """A response; `stalled` ones are not completed before the client closes."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    stalled: bool = False

    @staticmethod
    def of(value: object, status: int = 200) -> "Response":
        return Response(json.dumps(value).encode(), status)


@dataclass(frozen=True, slots=True)
class Request:
    """A request that the provider received."""

    method: str
    path: str
    headers: Mapping[str, str]
    form: Mapping[str, str]


@dataclass
class FakeProvider:
    """Follows the specification, but for what a test changes."""

    port: int = 0
    scheme: str = "http"
    algorithm: str = "ES256"
    kid: str = "key-1"
    key: Key = field(default_factory=ec_key)
    metadata: dict[str, Any] = field(default_factory=dict)  # overrides
    claims: dict[str, Any] = field(default_factory=dict)  # overrides; None removes
    extra_user_info: dict[str, Any] = field(default_factory=dict)
    user_info: dict[str, Any] = field(default_factory=dict)  # of the latest log-in
    responses: dict[str, Response] = field(default_factory=dict)  # by path
    requests: list[Request] = field(default_factory=list)
    sign: Callable[[dict[str, Any]], str] | None = None
    now: Callable[[], float] = time
    _codes: dict[str, tuple[dict[str, str], dict[str, Any]]] = field(
        default_factory=dict
    )

    @property
    def issuer(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def authorize(self, url: str, subject: str, **claims: Any) -> dict[str, str]:
        """Log a user in on this page; return the parameters of the redirect."""
        parameters = dict(parse_qsl(urlsplit(url).query, strict_parsing=True))
        assert parameters["response_type"] == "code"
        assert parameters["code_challenge_method"] == "S256"
        code = token_hex(16)
        self._codes[code] = parameters, {"sub": subject, **claims}
        self.user_info = {"sub": subject, **self.extra_user_info}
        return {"code": code, "state": parameters["state"]}

    def count(self, path: str) -> int:
        return sum(request.path == path for request in self.requests)

    def last(self, path: str) -> Request:
        """Return the latest request for a path."""
        return [request for request in self.requests if request.path == path][-1]

    def respond(self, request: Request) -> Response:
        self.requests.append(request)
        if request.path in self.responses:
            return self.responses[request.path]
        if request.path == "/.well-known/openid-configuration":
            return Response.of(self._discovery())
        if request.path == "/keys":
            return Response.of({"keys": [self.jwk]})
        if request.path == "/token":
            return self._token(request)
        if request.path == "/userinfo":
            assert request.headers["authorization"] == "Bearer at-1"
            return Response.of(self.user_info)
        return Response(status=404)

    @property
    def jwk(self) -> dict[str, Any]:
        return jwk_of(self.key, self.algorithm, self.kid)

    def _discovery(self) -> dict[str, Any]:
        endpoints = {
            "authorization_endpoint": "/authorize",
            "token_endpoint": "/token",
            "jwks_uri": "/keys",
            "userinfo_endpoint": "/userinfo",
        }
        urls = {name: self.issuer + path for name, path in endpoints.items()}
        return {"issuer": self.issuer, **urls, **self.metadata}

    def _token(self, request: Request) -> Response:
        form = request.form
        sent, claims = self._codes.pop(form["code"], ({}, {}))
        verifier = sha256(form["code_verifier"].encode()).digest()
        challenge = urlsafe_b64encode(verifier).decode().rstrip("=")
        expected = sent.get("redirect_uri"), sent.get("code_challenge")
        if (form["redirect_uri"], challenge) != expected:
            return Response.of({"error": "invalid_grant"}, 400)
        now = int(self.now())
        payload = {
            "iss": self.issuer,
            "aud": CLIENT_ID,
            "nonce": sent["nonce"],
            "iat": now,
            "exp": now + 300,
            **claims,
            **self.claims,
        }
        payload = {name: value for name, value in payload.items() if value is not None}
        token = self.sign(payload) if self.sign else self.signed(payload)
        return Response.of(
            {"access_token": "at-1", "token_type": "Bearer", "id_token": token}
        )

    def signed(self, payload: dict[str, Any]) -> str:
        headers = {"kid": self.kid}
        return jwt.encode(payload, self.key, self.algorithm, headers=headers)

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Answer one request of a connection."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            method, path, _ = head[0].split(" ")
            headers = {
                name.lower(): value
                for name, _, value in (
                    line.partition(": ") for line in head[1:] if line
                )
            }
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            form = {k: v[0] for k, v in parse_qs(body.decode()).items()}
            response = self.respond(Request(method, path, headers, form))
            length = len(response.body) + response.stalled
            lines = [
                f"HTTP/1.1 {response.status} X",
                f"content-length: {length}",
                *(f"{name}: {value}" for name, value in response.headers.items()),
            ]
            writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + response.body)
            await writer.drain()
            await reader.read()  # until the client closes
        writer.close()


@asynccontextmanager
async def fake_provider(tls: SSLContext | None = None) -> AsyncIterator[FakeProvider]:
    """Run a provider on a free port."""
    provider = FakeProvider(scheme="https" if tls else "http")
    server = await asyncio.start_server(provider.serve, "127.0.0.1", 0, ssl=tls)
    provider.port = server.sockets[0].getsockname()[1]
    try:
        yield provider
    finally:
        server.close()


def entry(
    provider_id: str, issuer: str, folder: Path, **changes: Any
) -> dict[str, Any]:
    """Return an entry of OIDC_PROVIDERS, with its secret in this folder."""
    (folder / "client-secret").write_text(f"{CLIENT_SECRET}\n")
    return {
        "id": provider_id,
        "name": provider_id.title(),
        "issuer": issuer,
        "client_id": CLIENT_ID,
        "client_secret_file": "client-secret",
        "allow_private_addresses": True,
        **changes,
    }


def write_entries(folder: Path, *entries: object) -> Path:
    """Write the file of OIDC_PROVIDERS."""
    path = folder / "providers.json"
    path.write_text(json.dumps(entries))
    return path


def client_of(
    provider: FakeProvider, clock: Clock | None = None, **http: Any
) -> OpenIdProvider:
    """Return the service's side of a provider."""
    http = {"allow_private_addresses": True, **http}
    client = Client(CLIENT_ID, CLIENT_SECRET, "https://academy.test/x", ["openid"])
    clock = clock or Clock()
    provider.now = lambda: clock().timestamp()
    return OpenIdProvider(
        "fake", "Fake", provider.issuer, client, ProviderHttp(**http), clock
    )
