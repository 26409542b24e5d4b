"""TLS listeners: who may connect, and certificates that change while they serve."""

import asyncio
import os
import ssl
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import grpc
import httpx
import pytest
import trustme

from edge.listener import DeadlinedProtocol
from edge.port import CallError
from server.composition.edge.upstream import connected_upstream
from server.composition.edge.upstream_port import UpstreamPort
from server.composition.listeners import http_server, serving
from server.composition.listeners.sockets import bind_http
from server.composition.tls import ListenerTls, open_listener_tls
from server.composition.tls.reload import ReloadedCredentials
from server.composition.tls.settings import upstream_credentials
from server.config import load
from server.rpc.grpc_server import build_grpc_server
from tests.certificates import Files, serial_number
from tests.fakes import NOON, Clock
from tests.logs import captured_lines

CALL, STREAM = "/test.Echo/Call", "/test.Echo/Stream"
SECONDS = 30
CALLERS = 4
AEAD = "ECDHE-ECDSA-AES128-GCM-SHA256"
CBC = "ECDHE-ECDSA-AES128-SHA256:ECDHE-ECDSA-AES256-SHA384:ECDHE-ECDSA-AES256-SHA"


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def echo_server() -> grpc.aio.Server:
    """Return a server that answers with the DNS names in the client's certificate."""

    async def call(_body: bytes, context: Any) -> bytes:
        names: list[bytes] = context.auth_context().get("peer_dns", [])
        return b",".join(names)

    async def stream(body: bytes, context: Any) -> None:
        for _ in range(3):
            await context.write(await call(body, context))
            await asyncio.sleep(0.05)

    unary: Any = call
    streaming: Any = stream
    methods: dict[str, Any] = {
        "Call": grpc.unary_unary_rpc_method_handler(unary),
        "Stream": grpc.unary_stream_rpc_method_handler(streaming),
    }
    return build_grpc_server(
        [grpc.method_handlers_generic_handler("test.Echo", methods)]
    )


@asynccontextmanager
async def grpc_listener(tls: ListenerTls) -> AsyncIterator[str]:
    async with serving.listening_grpc(
        echo_server(), "127.0.0.1:0", tls.server_credentials
    ) as port:
        yield f"127.0.0.1:{port}"


@asynccontextmanager
async def https_listener(
    tls: ListenerTls, body: bytes = b"", keep_alive: float = 75
) -> AsyncIterator[str]:
    """Answer with the scheme of the request, or with a body."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        content = body or scope["scheme"].encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": content})

    with bind_http("127.0.0.1:0") as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        async with serving.listening_http(
            cast(Any, application),
            listener,
            DeadlinedProtocol,
            timedelta(seconds=keep_alive),
            tls.ssl_context,
        ):
            yield address


async def echo(channel: grpc.aio.Channel) -> bytes:
    send: Any = channel.unary_unary(CALL)
    return bytes(await send(b"", timeout=SECONDS))


async def call(address: str, credentials: grpc.ChannelCredentials) -> str:
    """Return the answer to a call on a new connection, or the code of its error."""
    async with grpc.aio.secure_channel(address, credentials) as channel:
        try:
            answer = await echo(channel)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return answer.decode()


async def served_certificate(address: str) -> int:
    """Return the serial number of the certificate that a new handshake gets."""
    host, _, port = address.rpartition(":")
    pem = await asyncio.to_thread(ssl.get_server_certificate, (host, int(port)))
    return serial_number(pem.encode())


async def test_grpc_with_client_ca_needs_a_certificate_of_it(files: Files) -> None:
    """R41: in the handshake; one that is expired or for servers only is refused."""
    tls = open_listener_tls(files.settings("client_ca"))
    trusted = files.issue("billing.internal")
    foreign = trustme.CA().issue_cert("billing.internal")
    expired = files.issue(
        "billing.internal", not_after=datetime(2026, 1, 2, tzinfo=UTC)
    )
    async with grpc_listener(tls) as address:
        results = [
            await call(address, files.channel_credentials(client))
            for client in (trusted, foreign, expired, None)
        ]
        key, certificate = files.issue_for_server("billing.internal")
        server_only = grpc.ssl_channel_credentials(
            files.authority.cert_pem.bytes(), key, certificate
        )
        results.append(await call(address, server_only))
    assert results == ["billing.internal", *["UNAVAILABLE"] * 4]
    assert tls.handshakes >= 5


async def test_grpc_without_client_ca_needs_no_certificate(files: Files) -> None:
    async with grpc_listener(open_listener_tls(files.settings())) as address:
        assert await call(address, files.channel_credentials()) == ""
        other = grpc.ssl_channel_credentials(trustme.CA().cert_pem.bytes())
        assert await call(address, other) == "UNAVAILABLE"
        async with grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await echo(channel)


async def test_https_is_served_with_http_1_1_only(files: Files) -> None:
    """A client that offers HTTP/2 agrees on HTTP/1.1 (ALPN)."""
    context = files.ssl_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    async with https_listener(open_listener_tls(files.settings())) as address:
        host, _, port = address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port), ssl=context)
        assert (
            writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        )
        writer.close()
        async with httpx.AsyncClient(verify=files.ssl_context()) as http:
            assert (await http.get(f"https://{address}/")).text == "https"
        async with httpx.AsyncClient(verify=ssl.create_default_context()) as http:
            with pytest.raises(httpx.ConnectError):
                await http.get(f"https://{address}/")
        async with httpx.AsyncClient() as http:
            with pytest.raises(httpx.RemoteProtocolError):
                await http.get(f"http://{address}/")


async def test_tls_versions_before_1_2_are_refused(files: Files) -> None:
    """ASVS 12.1.1: on both listeners; 1.2 itself is accepted."""
    tls = open_listener_tls(files.settings())
    async with grpc_listener(tls) as grpc_address, https_listener(tls) as http_address:
        for address in (grpc_address, http_address):
            assert await negotiated_version(files, address, "TLSv1_2") == "TLSv1.2"
            assert await negotiated_version(files, address, "TLSv1_1") == "refused"


async def test_weak_ciphers_are_refused(files: Files) -> None:
    """ASVS 12.1.2: no CBC mode in TLS 1.2, on both listeners."""
    tls = open_listener_tls(files.settings())
    async with grpc_listener(tls) as grpc_address, https_listener(tls) as http_address:
        for address in (grpc_address, http_address):
            for ciphers, result in ((AEAD, "TLSv1.2"), (CBC, "refused")):
                version = await negotiated_version(files, address, "TLSv1_2", ciphers)
                assert version == result


async def negotiated_version(
    files: Files, address: str, newest: str, ciphers: str = "DEFAULT"
) -> str:
    """Return the version of a handshake whose client supports no newer one."""
    context = files.ssl_context()
    context.set_alpn_protocols(["h2"])
    context.set_ciphers(f"{ciphers}:@SECLEVEL=0")  # the client accepts all of them
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TLS 1.1
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion[newest]
    host, _, port = address.rpartition(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    except (ssl.SSLError, ConnectionError):
        return "refused"
    version = str(writer.get_extra_info("ssl_object").version())
    writer.transport.abort()
    return version


async def test_handshake_that_does_not_begin_is_ended(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R35: a silent connection to the HTTPS port is closed, as one without headers."""
    monkeypatch.setattr(http_server, "TLS_TIMEOUT_SECONDS", 0.2)
    async with https_listener(open_listener_tls(files.settings())) as address:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        async with asyncio.timeout(SECONDS):
            assert await reader.read() == b""
        writer.close()


async def test_https_client_that_does_not_read_is_disconnected(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R35: the rest of a response, and the end of TLS, are not waited for."""
    monkeypatch.setattr(http_server, "TLS_TIMEOUT_SECONDS", 0.5)
    size = 2**25
    tls = open_listener_tls(files.settings())
    async with https_listener(tls, body=bytes(size), keep_alive=1) as address:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(
            host, int(port), ssl=files.ssl_context()
        )
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readline()).split()[1] == b"200"
        await asyncio.sleep(2)
        with pytest.raises((ConnectionError, EOFError)):
            await reader.readexactly(size)
        writer.close()


async def test_certificate_change_under_load_fails_no_call(files: Files) -> None:
    """New handshakes get the new certificate; connections stay, on both transports."""
    tls = open_listener_tls(files.settings())
    async with (
        grpc_listener(tls) as grpc_address,
        https_listener(tls) as http_address,
        asyncio.timeout(SECONDS),
    ):
        load = Load(files, grpc_address, http_address)
        async with load.running(CALLERS):
            for _ in range(3):
                files.write(files.issue())
                await load.rounds(3 * CALLERS)
                for address in (grpc_address, http_address):
                    assert await served_certificate(address) == files.serial_number
    assert load.failures == []


class Load:
    """Calls over kept and new connections, by gRPC and REST, one after the other."""

    def __init__(self, files: Files, grpc_address: str, http_address: str) -> None:
        self._files = files
        self._grpc_address = grpc_address
        self._http_address = http_address
        self._finished_rounds = 0
        self._stopped = False
        self.failures: list[object] = []

    @asynccontextmanager
    async def running(self, callers: int) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._run()) for _ in range(callers)]
        try:
            yield
        finally:
            self._stopped = True  # a cancelled handshake would leave its socket open
            await asyncio.gather(*tasks)

    async def rounds(self, count: int) -> None:
        """Wait until this many rounds have ended."""
        end = self._finished_rounds + count
        while self._finished_rounds < end:  # noqa: ASYNC110 - a number, not an event
            await asyncio.sleep(0.005)

    async def _run(self) -> None:
        credentials = self._files.channel_credentials()
        url = f"https://{self._http_address}/"
        trust = self._files.ssl_context()
        async with (
            grpc.aio.secure_channel(self._grpc_address, credentials) as channel,
            httpx.AsyncClient(verify=trust) as http,
        ):
            while not self._stopped:
                try:
                    await echo(channel)
                    assert await call(self._grpc_address, credentials) == ""
                    (await http.get(url)).raise_for_status()
                    async with httpx.AsyncClient(verify=trust) as new:
                        (await new.get(url)).raise_for_status()
                except (grpc.aio.AioRpcError, httpx.HTTPError, AssertionError) as error:
                    self.failures.append(error)
                self._finished_rounds += 1


async def test_certificate_without_its_key_keeps_the_previous_pair(
    files: Files,
) -> None:
    """A pair that is half written is logged once and used once its key is there."""
    tls = open_listener_tls(files.settings())
    before, renewed = files.serial_number, files.issue()
    async with grpc_listener(tls) as grpc_address, https_listener(tls) as http_address:
        with captured_lines(event="certificate not reloaded") as lines:
            files.write_certificate(renewed)
            for address in (grpc_address, http_address) * 2:
                assert await served_certificate(address) == before
        assert [line["cause"].partition(":")[0] for line in lines] == ["TLS_KEY"]
        with captured_lines(event="certificate reloaded") as lines:
            files.write_key(renewed)
            for address in (grpc_address, http_address):
                assert await served_certificate(address) == files.serial_number
        assert len(lines) == 1
    assert files.serial_number != before


def test_invalid_files_are_read_again_when_they_change(files: Files) -> None:
    """Not at every handshake. Once a minute also without a change that is seen."""
    clock = Clock(datetime.now(UTC))
    credentials = ReloadedCredentials(files.server_files, clock)
    before, renewed, key = (
        credentials.current(),
        files.issue(),
        files.folder / "key.pem",
    )
    with captured_lines(event="certificate not reloaded") as lines:
        files.write_certificate(renewed)
        files.write_key(files.issue())
        assert credentials.current() is before
        files.write_key(files.issue())
        assert credentials.current() is before
        status = key.stat()
        files.write_key(renewed)
        os.utime(key, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert key.stat().st_size == status.st_size
        assert credentials.current() is before
        clock.now += timedelta(minutes=1)
        assert credentials.current().key == key.read_bytes()
    assert len(lines) == 2  # one for each change


async def test_missing_file_keeps_the_previous_pair(files: Files) -> None:
    """Also an invalid certificate authority; nothing ends the process."""
    tls = open_listener_tls(files.settings("client_ca"))
    client = files.channel_credentials(files.issue("billing.internal"))
    async with grpc_listener(tls) as address:
        (files.folder / "ca.pem").write_text("")
        assert await call(address, client) == "billing.internal"
        (files.folder / "key.pem").unlink()
        assert await call(address, client) == "billing.internal"


async def test_new_client_ca_replaces_the_previous_one(files: Files) -> None:
    """R41: from the next handshake on."""
    other = trustme.CA()
    new_client = other.issue_cert("reports.internal")
    tls = open_listener_tls(files.settings("client_ca"))
    async with grpc_listener(tls) as address:
        assert (
            await call(address, files.channel_credentials(new_client)) == "UNAVAILABLE"
        )
        other.cert_pem.write_to_path(files.folder / "ca.pem")
        answer = await call(address, files.channel_credentials(new_client))
        assert answer == "reports.internal"
        old_client = files.channel_credentials(files.issue("billing.internal"))
        assert await call(address, old_client) == "UNAVAILABLE"


@pytest.mark.parametrize(
    ("lifetime", "before_end", "events"),
    [
        (90, timedelta(days=15), []),
        (90, timedelta(days=13), ["certificate expires soon"]),
        (6, timedelta(days=3), []),
        (6, timedelta(days=1), ["certificate expires soon"]),
        (90, timedelta(days=-1), ["certificate expired"]),
    ],
)
def test_certificate_expiry_is_logged(
    files: Files, lifetime: int, before_end: timedelta, events: list[str]
) -> None:
    """From 14 days before the end, or in the last third of a shorter lifetime."""
    clock = Clock()
    end = NOON + timedelta(days=lifetime)
    files.write(files.issue(not_before=NOON, not_after=end))
    credentials = ReloadedCredentials(files.server_files, clock)
    clock.now = end - before_end
    with captured_lines(setting="TLS_CERT") as lines:
        credentials.warn_of_expiry()
    assert [line["event"] for line in lines] == events
    assert [line["days_left"] for line in lines] == [before_end.days] * len(events)


def test_certificate_expiry_is_logged_once_a_day(files: Files) -> None:
    clock = Clock()
    files.write(files.issue(not_before=NOON, not_after=NOON + timedelta(days=10)))
    credentials = ReloadedCredentials(files.server_files, clock)
    clock.now += timedelta(days=7)
    with captured_lines(event="certificate expires soon") as lines:
        for hours in (0, 23, 2, 1):
            clock.now += timedelta(hours=hours)
            credentials.warn_of_expiry()
    assert [line["days_left"] for line in lines] == [3, 1]


async def test_expired_new_certificate_keeps_the_previous_pair(files: Files) -> None:
    tls = open_listener_tls(files.settings())
    before = files.serial_number
    async with grpc_listener(tls) as address:
        files.write(files.issue(not_after=datetime(2026, 1, 2, tzinfo=UTC)))
        assert await served_certificate(address) == before
    assert tls.credentials
    assert tls.credentials.in_use.expires_at
    assert tls.credentials.in_use.expires_at > datetime.now(UTC)


@asynccontextmanager
async def upstream_to(address: str, files: Files) -> AsyncIterator[UpstreamPort]:
    """Connect as `academy edge` does, with a client certificate in the same folder."""
    pem = {"client_cert": "cert.pem", "client_key": "key.pem", "server_ca": "ca.pem"}
    settings = load(**{name: str(files.folder / file) for name, file in pem.items()})
    async with connected_upstream(
        address, upstream_credentials(settings, address)
    ) as upstream:
        yield upstream


async def test_edge_upstream_uses_a_renewed_certificate_without_a_failed_call(
    files: Files, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A stream that began before continues; later calls use the new certificate."""
    own = Files(tmp_path_factory.mktemp("edge"), files.authority)
    own.write(own.issue("first.internal"))
    tls = open_listener_tls(files.settings("client_ca"))
    async with (
        grpc_listener(tls) as address,
        upstream_to(address, own) as upstream,
        asyncio.timeout(SECONDS),
    ):

        async def unary() -> bytes:
            reply = await upstream.unary(CALL, b"", metadata=(), timeout=SECONDS)
            return reply.message

        assert await unary() == b"first.internal"
        stream = upstream.server_stream(STREAM, b"", metadata=(), timeout=SECONDS)
        messages = aiter(stream)
        assert await anext(messages) == b"first.internal"
        own.write(own.issue("second.internal"))
        while await unary() != b"second.internal":  # noqa: ASYNC110 - files are polled
            await asyncio.sleep(0.02)
        assert [message async for message in messages] == [b"first.internal"] * 2


async def test_edge_upstream_refuses_a_server_of_another_authority(
    files: Files, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = Files(tmp_path_factory.mktemp("edge"))
    async with (
        grpc_listener(open_listener_tls(files.settings())) as address,
        upstream_to(address, other) as upstream,
    ):
        with pytest.raises(CallError):
            await upstream.unary(CALL, b"", metadata=(), timeout=SECONDS)
        assert not await upstream.is_ready()
