"""The whole service over TLS: service certificates, the edge, curl and grpcurl."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio
from sqlalchemy.ext.asyncio import AsyncEngine

from batching.v1 import batching_pb2
from blatam.auth.v1 import auth_pb2 as pb
from blatam.auth.v1.auth_pb2_grpc import AuthServiceStub
from blatam.user.v1 import user_pb2
from blatam.user.v1.user_pb2_grpc import UserServiceStub
from edge.listener import DeadlinedProtocol
from server.composition.application import Application, build_application
from server.composition.edge.app import remote_edge
from server.composition.edge.upstream import connected_upstream
from server.composition.listeners import serving
from server.composition.listeners.sockets import bind_http
from server.composition.resources import open_resources
from server.composition.tls import ListenerTls, open_listener_tls
from server.composition.tls.metrics import tls_families
from server.composition.tls.settings import upstream_credentials
from server.config import load
from server.domain.accounts.users import Role
from tests.certificates import Files, chain_pem, key_pem
from tests.conftest import Servers, fresh_database, key_space
from tests.logs import captured_lines
from tests.metrics import Scrape
from tests.running import NO_LIMITS, SECRET, RunningService, running
from tests.status import expect_rpc_error

URI = "spiffe://academy.example/reports"
SERVICES = {"billing.internal": "billing", URI: "reports", "edge.internal": "edge"}
ME = user_pb2.GetCurrentUserRequest()
SECONDS = 30
Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class SecureService:
    """The application with TLS listeners, and an edge in front of its gRPC."""

    files: Files
    grpc_address: str
    https: httpx.AsyncClient
    edge: httpx.AsyncClient
    local: RunningService  # on the same stores, in plaintext
    auth: AuthServiceStub  # by a certificate without an entry
    root: Metadata
    tls: ListenerTls
    application: Application

    @property
    def connections_without_call(self) -> int:
        return self.tls.handshakes - self.application.connections.used

    @asynccontextmanager
    async def client(self, *names: str) -> AsyncIterator[grpc.aio.Channel]:
        """Connect with a certificate that has these DNS names."""
        leaf = self.files.issue(*names)
        async with self.client_with(key_pem(leaf), chain_pem(leaf)) as channel:
            yield channel

    @asynccontextmanager
    async def client_with(
        self, key: bytes, certificate: bytes
    ) -> AsyncIterator[grpc.aio.Channel]:
        credentials = grpc.ssl_channel_credentials(
            self.files.authority.cert_pem.bytes(), key, certificate
        )
        async with grpc.aio.secure_channel(self.grpc_address, credentials) as channel:
            yield channel

    async def create_key(self, name: str) -> tuple[pb.ServiceKey, Metadata]:
        """Create a service key; return it and the metadata that presents it."""
        response = await self.auth.CreateServiceKey(
            pb.CreateServiceKeyRequest(name=name), metadata=self.root
        )
        return response.service_key, authorization(response.secret)

    async def revoke(self, key: pb.ServiceKey) -> None:
        request = pb.RevokeServiceKeyRequest(id=key.id)
        await self.auth.RevokeServiceKey(request, metadata=self.root)


def authorization(token: str) -> Metadata:
    return (("authorization", f"Bearer {token}"),)


@pytest_asyncio.fixture(scope="module")
async def service(
    servers: Servers,
    admin: AsyncEngine,
    template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[SecureService]:
    files = Files(tmp_path_factory.mktemp("server"))
    own = Files(tmp_path_factory.mktemp("edge"), files.authority)
    own.write(own.issue("edge.internal"))
    redis_url = key_space(servers, 3)
    async with fresh_database(servers, admin, template) as database_url:
        settings = files.settings(
            "client_ca",
            database_url=database_url,
            redis_url=redis_url,
            secret_key=SECRET,
            rate_limits=NO_LIMITS,
            service_certificates=SERVICES,
            debug=True,
        )
        tls = open_listener_tls(settings)
        async with (
            running(database_url, redis_url) as local,
            open_resources(settings) as resources,
            build_application(resources) as application,
            serving.listening_grpc(
                application.grpc, "127.0.0.1:0", tls.server_credentials
            ) as port,
            https_client(application.http, tls, files) as https,
            edge_client(f"127.0.0.1:{port}", own) as edge,
            grpc.aio.secure_channel(
                f"127.0.0.1:{port}",
                files.channel_credentials(files.issue("admin.internal")),
            ) as channel,
        ):
            root = (await local.signed_in(Role.ADMIN)).metadata
            auth, address = AuthServiceStub(channel), f"127.0.0.1:{port}"
            yield SecureService(
                files, address, https, edge, local, auth, root, tls, application
            )


@asynccontextmanager
async def https_client(
    application: Any, tls: ListenerTls, files: Files
) -> AsyncIterator[httpx.AsyncClient]:
    """Serve REST over TLS, and connect to it."""
    with bind_http("127.0.0.1:0") as listener:
        port = listener.getsockname()[1]
        async with (
            serving.listening_http(
                application, listener, DeadlinedProtocol, ssl_context=tls.ssl_context
            ),
            httpx.AsyncClient(
                base_url=f"https://localhost:{port}", verify=files.ssl_context()
            ) as http,
        ):
            yield http


@asynccontextmanager
async def edge_client(server: str, own: Files) -> AsyncIterator[httpx.AsyncClient]:
    """Run `academy edge` in front of a server, and connect to it."""
    pem = {"client_cert": "cert.pem", "client_key": "key.pem", "server_ca": "ca.pem"}
    settings = load(**{name: str(own.folder / file) for name, file in pem.items()})
    async with connected_upstream(
        server, upstream_credentials(settings, server)
    ) as upstream:
        transport = httpx.ASGITransport(remote_edge(upstream, settings))
        async with httpx.AsyncClient(
            transport=transport, base_url="http://edge.test"
        ) as http:
            yield http


async def introspect(
    service: SecureService, channel: grpc.aio.Channel, metadata: Metadata = ()
) -> bool:
    """Call an RPC that only services may call."""
    token = (await service.local.signed_in()).tokens.access_token
    request = pb.VerifyTokenRequest(token=token)
    response = await AuthServiceStub(channel).VerifyToken(request, metadata=metadata)
    return response.active


async def refusal(
    service: SecureService, channel: grpc.aio.Channel, metadata: Metadata = ()
) -> str:
    """Return the reason why the same call is refused."""
    error = await expect_rpc_error(introspect(service, channel, metadata))
    assert error.code is grpc.StatusCode.UNAUTHENTICATED
    return error.reason


async def test_service_certificate_stands_for_its_service_key(
    service: SecureService,
) -> None:
    """R41: without a header, for as long as a valid key has the name."""
    async with service.client("billing.internal") as channel:
        assert await refusal(service, channel) == "TOKEN_INVALID"  # no such key
        key, _ = await service.create_key("billing")
        with captured_lines(method="/blatam.auth.v1.AuthService/VerifyToken") as lines:
            assert await introspect(service, channel)
        assert [(line["caller"], line["certificate"]) for line in lines] == [
            (f"service:{key.id}", "billing")
        ]
        error = await expect_rpc_error(UserServiceStub(channel).GetCurrentUser(ME))
        assert error.reason == "USER_REQUIRED"
        await service.revoke(key)
        assert await refusal(service, channel) == "TOKEN_INVALID"


async def test_service_certificate_may_have_a_uri(service: SecureService) -> None:
    """R41: a URI is compared exactly, and no DNS name is taken for it."""
    await service.create_key("reports")
    async with service.client_with(*service.files.issue_for_uri(URI)) as channel:
        assert await introspect(service, channel)
    for uri in (f"{URI}/", URI.upper(), "billing.internal"):
        pair = service.files.issue_for_uri(uri, dns_name=URI)
        async with service.client_with(*pair) as channel:
            assert await refusal(service, channel) == "TOKEN_MISSING"


async def test_service_certificate_must_agree_with_the_header(
    service: SecureService,
) -> None:
    """R41: another service's key is refused; a user's token acts for the user."""
    key, own = await service.create_key("billing")
    _, other = await service.create_key("reports")
    ana = await service.local.signed_in()
    async with service.client("billing.internal") as channel:
        assert await introspect(service, channel, own)
        assert await refusal(service, channel, other) == "TOKEN_INVALID"
        assert await refusal(service, channel, authorization("x")) == "TOKEN_INVALID"
        assert await refusal(service, channel, (("authorization", ""),)) == (
            "TOKEN_MISSING"
        )
        stub = UserServiceStub(channel)
        response = await stub.GetCurrentUser(ME, metadata=ana.metadata)
        assert response.user.id == ana.user.id
    async with service.client("billing.internal", "edge.internal") as channel:
        assert await refusal(service, channel) == "TOKEN_INVALID"  # two services
    async with service.client("unknown.internal") as channel:
        assert await refusal(service, channel) == "TOKEN_MISSING"
        assert await introspect(service, channel, own)
    await service.revoke(key)


async def test_service_certificate_stream_ends_with_its_key(
    service: SecureService,
) -> None:
    """R22, R41: each message checks the key again."""
    key, _ = await service.create_key("billing")
    async with service.client("billing.internal") as channel:
        request = pb.WatchRevocationsRequest()
        stream = aiter(AuthServiceStub(channel).WatchRevocations(request))
        await anext(stream)
        await service.revoke(key)
        ana = await service.local.signed_in()
        await service.auth.Logout(pb.LogoutRequest(), metadata=ana.metadata)
        async with asyncio.timeout(SECONDS):
            error = await expect_rpc_error(read_all(stream))
    assert error.reason == "TOKEN_INVALID"


async def read_all(stream: Any) -> None:
    async for _ in stream:
        pass


async def test_wrong_client_certificates_are_counted(service: SecureService) -> None:
    """R41: those that TLS refuses as connections without a call, others as calls."""
    foreign = Files(service.files.folder / "foreign")
    for leaf in (foreign.issue("billing.internal"), None):
        before = service.connections_without_call
        credentials = service.files.channel_credentials(leaf)
        async with grpc.aio.secure_channel(
            service.grpc_address, credentials
        ) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await UserServiceStub(channel).GetCurrentUser(ME)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        assert service.connections_without_call > before
    keys, connections = (
        service.application.service_keys,
        service.application.connections,
    )
    used, refused = connections.used, keys.refused_certificates
    async with service.client("unknown.internal") as channel:
        assert await refusal(service, channel) == "TOKEN_MISSING"
    assert connections.used == used + 1
    assert keys.refused_certificates == refused + 1
    scrape = Scrape("".join(tls_families(service.tls, service.application)).encode())
    counts = {
        "academy_tls_handshakes_total": service.tls.handshakes,
        "academy_grpc_connections_with_calls_total": connections.used,
        "academy_client_certificates_refused_total": keys.refused_certificates,
    }
    assert {name: scrape.total(name) for name in counts} == counts


async def test_edge_certificate_does_not_identify_its_clients(
    service: SecureService,
) -> None:
    """R41: calls that the edge forwards do not get the rights of its certificate.

    Neither batched calls, nor large ones, which are not batched, nor streams.
    """
    key, _ = await service.create_key("edge")
    async with service.client("edge.internal") as channel:
        assert await introspect(service, channel)  # the edge itself has the rights
        assert await batched_code(channel) == grpc.StatusCode.UNAUTHENTICATED.value[0]
    for token in ("x", "x" * 100_000):
        response = await service.edge.post("/api/v1/auth/verify", json={"token": token})
        assert (response.status_code, response.json()["errorCode"]) == (
            401,
            "TOKEN_MISSING",
        )
    response = await service.edge.get("/api/v1/auth/revocations:watch")
    assert (response.status_code, response.json()["errorCode"]) == (
        401,
        "TOKEN_MISSING",
    )
    ana = await service.local.signed_in()
    response = await service.edge.get("/api/v1/users/me", headers=ana.headers)
    assert response.json()["id"] == str(ana.user.id)
    await service.revoke(key)


async def batched_code(channel: grpc.aio.Channel) -> int:
    """Return the code of a batched call to an RPC that only services may call."""
    stream: Any = channel.stream_stream("/batching.v1.BatchingService/ExecuteBatch")()
    call = batching_pb2.Call(
        id=1,
        method="/blatam.auth.v1.AuthService/VerifyToken",
        message=pb.VerifyTokenRequest(token="x").SerializeToString(),
    )
    request = batching_pb2.ExecuteBatchRequest(calls=[call])
    await stream.write(request.SerializeToString())
    response = batching_pb2.ExecuteBatchResponse.FromString(await stream.read())
    stream.cancel()
    return response.results[0].code


async def test_rest_by_tls_has_hsts(service: SecureService) -> None:
    """ASVS 3.4.1: browsers return by https only."""
    response = await service.https.get("/.well-known/jwks.json")
    assert response.status_code == 200
    assert response.headers["strict-transport-security"] == (
        "max-age=31536000; includeSubDomains"
    )


async def test_curl_calls_rest_with_the_test_authority(service: SecureService) -> None:
    """The system's authorities do not know the certificate."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not on this machine")
    url = f"{service.https.base_url}/.well-known/jwks.json"
    authority = str(service.files.folder / "ca.pem")
    assert '"keys"' in await output("curl", "-sS", "--cacert", authority, url)
    assert "certificate" in await output("curl", "-sS", url)


async def test_grpcurl_calls_with_a_client_certificate(
    service: SecureService, tmp_path: Path
) -> None:
    if shutil.which("grpcurl") is None:
        pytest.skip("grpcurl is not on this machine (it needs Go to install)")
    client = Files(tmp_path, service.files.authority)
    trust = ["-cacert", str(tmp_path / "ca.pem")]
    pair = ["-cert", str(tmp_path / "cert.pem"), "-key", str(tmp_path / "key.pem")]
    client.write(client.issue("grpcurl.internal"))
    address = service.grpc_address
    listed = await output("grpcurl", *trust, *pair, address, "list")
    assert "blatam.auth.v1.AuthService" in listed
    assert "blatam" not in await output(
        "grpcurl", "-connect-timeout", "2", *trust, address, "list"
    )


async def output(*command: str) -> str:
    """Run a command; return what it prints."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(SECONDS):
        printed, _ = await process.communicate()
    return printed.decode()
