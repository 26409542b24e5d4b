"""Checks of GRPC_LISTEN and HTTP_LISTEN: this service answers, or another server."""

from __future__ import annotations

import asyncio
import http.client
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from server.cli.monitoring.findings import Finding
from server.config import Settings

TIMEOUT_SECONDS = 2.0
SERVICE = "blatam.auth.v1.AuthService"  # no other server knows its health
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not bound here
Endpoint = tuple[str, int]


class _OtherServer(Exception):
    """Something listens, but not this service; the message says how that shows."""


async def check_listeners(settings: Settings) -> list[Finding]:
    """Check that this service answers at both addresses."""
    checks: tuple[tuple[str, str, _Probe], ...] = (
        ("GRPC_LISTEN", settings.grpc_listen, _probe_grpc),
        ("HTTP_LISTEN", settings.http_listen, _probe_http),
    )
    return [
        await asyncio.to_thread(_check, setting, address, probe, settings.tls_cert)
        for setting, address, probe in checks
    ]


def _check(
    setting: str, address: str, probe: _Probe, certificate: Path | None
) -> Finding:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    endpoint = _ANY_ADDRESS.get(host, host), int(port)
    try:
        socket.create_connection(endpoint, TIMEOUT_SECONDS).close()
    except OSError:
        advice = "start the server: academy up, or academy serve"
        return Finding(setting, False, f"{address}: no server is listening", advice)
    try:
        probe(endpoint, certificate)
    except _OtherServer as error:
        result = f"{address}: another server is listening: {error}"
        advice = f"stop that server, or set {setting} to a free address"
        return Finding(setting, False, result, advice)
    except TimeoutError:
        result = f"{address}: no answer within {TIMEOUT_SECONDS:g} s"
        advice = "look whether another server listens there, or this one is overloaded"
        return Finding(setting, False, result, advice)
    return Finding(setting, True, f"{address}: the server answers")


def _probe_grpc(endpoint: Endpoint, certificate: Path | None) -> None:
    """Ask for the health of a service of ours, or compare the certificate.

    With TLS a call may need a client certificate. Raises _OtherServer, TimeoutError.
    """
    if certificate:
        _compare_certificate(endpoint, certificate)
        return
    host, port = endpoint
    target = f"ipv6:[{host}]:{port}" if ":" in host else f"{host}:{port}"
    with grpc.insecure_channel(target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        try:
            stub.Check(request, timeout=TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            code = error.code()
            if code is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise TimeoutError from error
            cause = f"a health check fails with {code.name}"
            raise _OtherServer(cause) from error


def _compare_certificate(endpoint: Endpoint, certificate: Path) -> None:
    own = ssl.PEM_cert_to_DER_cert(_first_certificate(certificate.read_text()))
    try:
        with (
            socket.create_connection(endpoint, TIMEOUT_SECONDS) as connection,
            _unverified().wrap_socket(connection) as secured,
        ):
            presented = secured.getpeercert(binary_form=True)
    except TimeoutError:
        raise
    except OSError as error:  # ssl.SSLError is one
        raise _OtherServer("it does not use TLS") from error
    if presented != own:
        raise _OtherServer(
            "its certificate is not that of TLS_CERT, which a server reads again "
            "within a minute"
        )


def _first_certificate(pem: str) -> str:
    end = "-----END CERTIFICATE-----"
    return pem[pem.index("-----BEGIN CERTIFICATE") : pem.index(end) + len(end)]


def _probe_http(endpoint: Endpoint, certificate: Path | None) -> None:
    """Get /livez, whose response is empty. Raises _OtherServer, TimeoutError."""
    connection = (
        http.client.HTTPSConnection(
            *endpoint, timeout=TIMEOUT_SECONDS, context=_unverified()
        )
        if certificate
        else http.client.HTTPConnection(*endpoint, timeout=TIMEOUT_SECONDS)
    )
    try:
        connection.request("GET", "/livez")
        response = connection.getresponse()
        if response.status != http.client.OK or response.read():
            raise _OtherServer(f"GET /livez returns {response.status}")
    except TimeoutError:
        raise
    except (OSError, http.client.HTTPException) as error:
        protocol = "HTTPS" if certificate else "HTTP"
        raise _OtherServer(f"it does not answer {protocol}") from error
    finally:
        connection.close()


def _unverified() -> ssl.SSLContext:
    """Return a context that accepts every certificate: nothing secret is sent."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


_Probe = Callable[[Endpoint, Path | None], None]
