"""A provider as the service sees it: discovery, keys, tokens, and their limits."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import pytest_asyncio

from server.domain.errors import FederatedLoginInvalid, IdentityProviderUnavailable
from server.domain.identities.providers import (
    AuthorizationRequest,
    AuthorizationResponse,
    ExternalIdentity,
)
from server.identity_providers.http_client import MAX_BODY_SIZE
from server.identity_providers.provider import OpenIdProvider
from tests.certificates import Files
from tests.fakes import Clock
from tests.identity_provider import (
    CLIENT_SECRET,
    FakeProvider,
    Response,
    client_of,
    ec_key,
    fake_provider,
)

# RFC 7636, appendix B
VERIFIER = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
CHALLENGE = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
REQUEST = AuthorizationRequest(state="st", nonce="no", code_challenge=CHALLENGE)
DISCOVERY = "/.well-known/openid-configuration"


@pytest_asyncio.fixture
async def provider() -> AsyncIterator[FakeProvider]:
    async with fake_provider() as running:
        yield running


async def log_in(
    provider: FakeProvider,
    service: OpenIdProvider,
    iss: str = "",
    verifier: str = VERIFIER,
    **claims: Any,
) -> ExternalIdentity:
    url = await service.authorization_url(REQUEST)
    sent = provider.authorize(url, "ana", **claims)
    return await service.identity(
        AuthorizationResponse(sent["code"], iss, verifier, REQUEST.nonce)
    )


async def refused(provider: FakeProvider, **changes: Any) -> None:
    with pytest.raises(FederatedLoginInvalid):
        await log_in(provider, client_of(provider), **changes)


async def unavailable(provider: FakeProvider, **http: Any) -> str:
    """Expect that a log-in fails; return the cause in the log."""
    with pytest.raises(IdentityProviderUnavailable) as caught:
        await log_in(provider, client_of(provider, **http), email="ana@example.com")
    assert CLIENT_SECRET not in str(caught.value.__notes__)
    return str(caught.value.__notes__)


async def test_log_in(provider: FakeProvider) -> None:
    service = client_of(provider)
    url = await service.authorization_url(REQUEST)
    query = parse_qs(urlsplit(url).query)
    assert query["scope"] == ["openid"]
    assert query["redirect_uri"] == ["https://academy.test/x"]
    identity = await log_in(
        provider,
        service,
        email="ana@example.com",
        email_verified=True,
        preferred_username="ana",
    )
    assert identity == ExternalIdentity(
        "fake", "Fake", provider.issuer, "ana", "ana@example.com", True, "ana"
    )


async def test_code_needs_its_verifier(provider: FakeProvider) -> None:
    """PKCE: the provider refuses the code of another log-in."""
    await refused(provider, verifier=VERIFIER + "x")


async def test_secret_is_sent_as_the_provider_supports(provider: FakeProvider) -> None:
    """Form-encoded in the header (RFC 6749 2.3.1), or in the body."""
    await log_in(provider, client_of(provider), email="")
    sent = provider.last("/token")
    assert sent.headers["authorization"] == (
        "Basic YWNhZGVteTpzM2NyZXQlMkZvZit0aGUlM0FjbGllbnQ="
    )
    provider.metadata["token_endpoint_auth_methods_supported"] = ["client_secret_post"]
    await log_in(provider, client_of(provider), email="")
    sent = provider.last("/token")
    assert "authorization" not in sent.headers
    assert sent.form["client_secret"] == CLIENT_SECRET


@pytest.mark.parametrize("supported", [True, False])
async def test_response_of_another_issuer_is_refused(
    provider: FakeProvider, supported: bool
) -> None:
    """The mix-up attack (RFC 9207): `iss` is needed from a provider that sends it."""
    provider.metadata["authorization_response_iss_parameter_supported"] = supported
    service = client_of(provider)
    await log_in(provider, service, iss=provider.issuer, email="")
    exchanged = provider.count("/token")
    with pytest.raises(FederatedLoginInvalid):
        await log_in(provider, service, iss="https://evil.test", email="")
    if supported:
        with pytest.raises(FederatedLoginInvalid):
            await log_in(provider, service, email="")
    assert provider.count("/token") == exchanged  # no code left the service


async def test_id_token_is_verified(provider: FakeProvider) -> None:
    """A smaller table than that of id_tokens: here, that it is used."""
    for changes in ({"nonce": "other"}, {"iss": "https://evil.test"}, {"exp": 1}):
        await refused(provider, **changes)
    provider.sign = lambda claims: replace_signature(provider.signed(claims))
    await refused(provider)


def replace_signature(token: str) -> str:
    return ".".join([*token.split(".")[:2], "A" * 86])


async def test_discovery_and_keys_are_cached(provider: FakeProvider) -> None:
    """For an hour, and for a day while the provider does not respond."""
    clock = Clock()
    service = client_of(provider, clock)
    calls = [service.authorization_url(REQUEST) for _ in range(5)]
    await asyncio.gather(*calls)
    await log_in(provider, service, email="")
    await log_in(provider, service, email="")
    assert (provider.count(DISCOVERY), provider.count("/keys")) == (1, 1)
    clock.advance(3600)
    await log_in(provider, service, email="")
    assert (provider.count(DISCOVERY), provider.count("/keys")) == (2, 2)
    provider.responses[DISCOVERY] = provider.responses["/keys"] = Response(status=503)
    clock.advance(3600)
    await log_in(provider, service, email="")
    clock.advance(24 * 3600)
    with pytest.raises(IdentityProviderUnavailable):
        await service.authorization_url(REQUEST)
    provider.responses.clear()
    clock.advance(5)
    await log_in(provider, service, email="")


async def test_failed_discovery_is_not_repeated_by_every_call(
    provider: FakeProvider,
) -> None:
    provider.responses[DISCOVERY] = Response(status=500)
    service = client_of(provider)
    for _ in range(3):
        with pytest.raises(IdentityProviderUnavailable):
            await service.authorization_url(REQUEST)
    assert provider.count(DISCOVERY) == 1


async def test_rotated_key_is_found(provider: FakeProvider) -> None:
    """An unknown key is looked for at most once a minute."""
    clock = Clock()
    service = client_of(provider, clock)
    await log_in(provider, service, email="")
    provider.key, provider.kid = ec_key(), "key-2"
    with pytest.raises(FederatedLoginInvalid):
        await log_in(provider, service, email="")
    assert provider.count("/keys") == 1
    clock.advance(60)
    await log_in(provider, service, email="")
    provider.kid = "key-3"
    provider.responses["/keys"] = Response.of({"keys": []})
    for _ in range(3):
        with pytest.raises(FederatedLoginInvalid):
            await log_in(provider, service, email="")
    assert provider.count("/keys") == 2


@pytest.mark.parametrize(
    "change",
    [
        {"issuer": "https://evil.test"},
        {"issuer": None},
        {"token_endpoint": "http://idp.test/token"},
        {"token_endpoint": "file:///etc/passwd"},
        {"token_endpoint": "https://a@b/"},
        {"token_endpoint": "https://[/"},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"jwks_uri": None},
        {"jwks_uri": "http://10.0.0.1/keys"},
        {"userinfo_endpoint": "http://idp.test/"},
    ],
)
async def test_discovery_must_name_the_issuer_and_https_endpoints(
    provider: FakeProvider, change: dict[str, Any]
) -> None:
    provider.metadata |= change
    await unavailable(provider)
    assert [request.path for request in provider.requests] == [DISCOVERY]


@pytest.mark.parametrize("path", [DISCOVERY, "/keys", "/token"])
@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_redirects_are_not_followed(
    provider: FakeProvider, path: str, status: int
) -> None:
    target = {"location": f"{provider.issuer}/elsewhere"}
    provider.responses[path] = Response(status=status, headers=target)
    assert f"status {status}" in await unavailable(provider)
    assert not provider.count("/elsewhere")


@pytest.mark.parametrize("path", [DISCOVERY, "/keys", "/token"])
async def test_responses_are_limited(provider: FakeProvider, path: str) -> None:
    """In size and in time, and they must be JSON objects."""
    provider.responses[path] = Response(b" " * (MAX_BODY_SIZE + 1))
    assert f"more than {MAX_BODY_SIZE} bytes" in await unavailable(provider)
    provider.responses[path] = Response(b"{", stalled=True)
    assert "TimeoutError" in await unavailable(provider, timeout_seconds=0.3)
    for body in (b"[]", b"{", b"\xff", b"[" * 100_000):
        provider.responses[path] = Response(body)
        assert "not a JSON object" in await unavailable(provider)


@pytest.mark.parametrize(
    "body",
    [{}, {"id_token": None}, {"id_token": "x"}, {"id_token": "a" * 100_000}],
)
async def test_response_without_a_valid_id_token_is_refused(
    provider: FakeProvider, body: dict[str, Any]
) -> None:
    provider.responses["/token"] = Response.of(body)
    await refused(provider)


async def test_wrong_client_secret_is_the_operators_fault(
    provider: FakeProvider,
) -> None:
    provider.responses["/token"] = Response.of({"error": "invalid_client"}, 401)
    assert "status 401" in await unavailable(provider)
    provider.responses["/token"] = Response.of({"error": "unauthorized_client"}, 400)
    assert "unauthorized_client" in await unavailable(provider)


async def test_email_may_be_in_user_info_only(provider: FakeProvider) -> None:
    provider.extra_user_info = {
        "email": "ana@example.com",
        "email_verified": "true",
        "nonce": "ignored",
    }
    identity = await log_in(provider, client_of(provider))
    assert (identity.email, identity.email_verified) == ("ana@example.com", True)
    provider.extra_user_info["sub"] = "eve"
    await refused(provider)


async def test_claims_of_other_types_are_ignored(provider: FakeProvider) -> None:
    identity = await log_in(
        provider,
        client_of(provider),
        email=["a@b.co"],
        email_verified="yes",
        preferred_username="ana\0",
    )
    assert identity == ExternalIdentity("fake", "Fake", provider.issuer, "ana")


async def test_private_authority(tmp_path: Path) -> None:
    """With `ca_file`, its authority is the only one that is trusted."""
    Files(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    async with fake_provider(context) as provider:
        service = client_of(provider, ca_file=tmp_path / "ca.pem")
        assert await service.check() == 1
        assert "CERTIFICATE_VERIFY_FAILED" in await unavailable(provider)


async def test_certificate_must_be_that_of_the_host(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.write(files.issue("idp.test"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    async with fake_provider(context) as provider:
        cause = await unavailable(provider, ca_file=tmp_path / "ca.pem")
        assert "IP address mismatch" in cause
        assert provider.requests == []


async def test_private_addresses_need_permission(provider: FakeProvider) -> None:
    provider.scheme = "https"
    cause = await unavailable(provider, allow_private_addresses=False)
    assert "127.0.0.1 has the address 127.0.0.1" in cause
    assert provider.requests == []
