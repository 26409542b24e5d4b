"""`academy serve` and `academy edge` as processes, with TLS on every connection."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import orjson
from cryptography.x509 import load_pem_x509_certificate

from tests.certificates import Files
from tests.mailbox import address_of, bound_socket
from tests.metrics import Scrape
from tests.processes import FREE_PORTS, ROOT, serving

SECONDS = 60
JWKS = "/.well-known/jwks.json"
EXPIRY = "academy_tls_certificate_expiry_timestamp_seconds"
RENEWAL = "academy_tls_certificate_renewal_timestamp_seconds"


def expires_at(files: Files) -> float:
    pem = (files.folder / "cert.pem").read_bytes()
    return load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()


def in_capitals(settings: Mapping[str, str]) -> dict[str, str]:
    return {name.upper(): value for name, value in settings.items()}


@asynccontextmanager
async def edge_process(server: str, settings: Mapping[str, str]) -> AsyncIterator[str]:
    """Run `academy edge` during the block; return its address. It must exit with 0."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server", "edge", "--server", server),
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **FREE_PORTS, **settings},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(SECONDS):
            assert process.stderr
            line = b""
            while b'"listening"' not in line:
                line = await process.stderr.readline()
                assert line, "academy edge has ended"
            yield orjson.loads(line)["http"]
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def fail_handshake(address: str) -> None:
    """Connect without TLS; return when the server has closed the connection."""
    reader, writer = await asyncio.open_connection(*address.rsplit(":", 1))
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    async with asyncio.timeout(SECONDS):
        await reader.read(-1)
    writer.close()


async def test_serve_and_edge_use_tls_on_every_connection(
    tmp_path: Path, database_url: str, redis_url: str
) -> None:
    """The edge presents its certificate to the server; both serve REST over TLS.

    A renewed certificate of the server is used without a restart.
    """
    with bound_socket() as reserved, bound_socket() as also_reserved:
        metrics_address = address_of(reserved)
        edge_metrics_address = address_of(also_reserved)
    files = Files(tmp_path / "server")
    own = Files(tmp_path / "edge", files.authority)
    client = Files(tmp_path / "client", files.authority)
    client.write(client.issue(not_after=datetime.now(UTC) + timedelta(days=3)))
    server_settings = {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "SECRET_KEY": "0123456789abcdef" * 4,
        "METRICS_LISTEN": metrics_address,
        **in_capitals(files.environment("client_ca")),
    }
    metrics = f"http://{metrics_address}/metrics"
    upstream = {
        "client_cert": "cert.pem",
        "client_key": "key.pem",
        "server_ca": "ca.pem",
    }
    edge_settings = in_capitals(
        own.environment()
        | {name: str(client.folder / file) for name, file in upstream.items()}
        | {"metrics_listen": edge_metrics_address}
    )
    async with (
        serving(server_settings) as server,
        httpx.AsyncClient(verify=files.ssl_context()) as http,
    ):
        url = server.rest.replace("http://", "https://")
        assert (await http.get(url + JWKS)).status_code == 200
        files.write(files.issue())
        lines = [orjson.loads(line) for line in server.log.read_bytes().splitlines()]
        (grpc_address,) = [
            line["grpc"] for line in lines if line["event"] == "listening"
        ]
        async with edge_process(grpc_address, edge_settings) as address:
            response = await http.get(f"https://{address}{JWKS}")
            assert response.status_code == 200
            assert (await http.get(f"https://{address}/readyz")).status_code == 200
            scrape = Scrape(
                (await http.get(f"http://{edge_metrics_address}/metrics")).content
            )
            assert scrape.total(EXPIRY) == expires_at(client)  # before the listener's
            assert scrape.total(RENEWAL) < expires_at(client)
        await fail_handshake(grpc_address)
        assert b"certificate reloaded" in server.log.read_bytes()
        scrape = Scrape((await http.get(metrics)).content)
        assert scrape.total(EXPIRY) == expires_at(files)
        for line in server.log.read_bytes().splitlines():
            orjson.loads(line)
