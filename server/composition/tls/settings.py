"""The TLS settings: which combinations are valid, and the credentials they name."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

from server.composition.tls.files import CredentialFiles, PemFile
from server.composition.tls.reload import ReloadedCredentials
from server.config import ConfigurationError, Settings, is_loopback
from server.config_addresses import overlap

_TLS_ADVICE = "set TLS_CERT and TLS_KEY, or ALLOW_PLAINTEXT=1 if a proxy terminates TLS"
_PLAINTEXT_ADVICE = {
    "grpc_listen": _TLS_ADVICE,
    "http_listen": _TLS_ADVICE,
    "metrics_listen": "it has no TLS: set a loopback address, or ALLOW_PLAINTEXT=1 if "
    "only the monitoring system can reach it",
}


def listener_credentials(
    settings: Settings, *, with_grpc: bool = True
) -> ReloadedCredentials | None:
    """Return the credentials of this process's listeners; None for plaintext.

    `academy edge` listens without gRPC, and so without client certificates. Raises
    ConfigurationError with a line per fault.
    """
    faults = [
        *_shared_addresses(settings, with_grpc=with_grpc),
        *_incomplete_pair(settings, "tls_cert", "tls_key"),
        *(_client_certificate_faults(settings) if with_grpc else ()),
        *(
            f"{name.upper()}: {address} can be reached from other machines: "
            + _PLAINTEXT_ADVICE[name]
            for name, address in plaintext_listeners(settings, with_grpc=with_grpc)
            if not settings.allow_plaintext
        ),
    ]
    if faults:
        raise ConfigurationError("\n".join(faults))
    if settings.tls_cert is None:
        return None
    return ReloadedCredentials(
        CredentialFiles(
            certificate=_file("TLS_CERT", settings.tls_cert),
            key=_file("TLS_KEY", settings.tls_key),
            authorities=_file("CLIENT_CA", settings.client_ca) if with_grpc else None,
        )
    )


def _shared_addresses(settings: Settings, *, with_grpc: bool) -> Iterator[str]:
    """Yield a fault for each listener at the address of another one."""
    names = ["grpc_listen"] if with_grpc else []
    for name, other in combinations([*names, "http_listen", "metrics_listen"], 2):
        address, taken = getattr(settings, other), getattr(settings, name)
        if overlap(taken, address):
            yield (
                f"{other.upper()}: {address} is the address of {name.upper()}, "
                f"{taken}: set another port"
            )


def plaintext_listeners(
    settings: Settings, *, with_grpc: bool = True
) -> Iterator[tuple[str, str]]:
    """Yield the setting and address of each listener beyond loopback without TLS.

    The metrics listener never has TLS.
    """
    has_tls = settings.tls_cert or settings.tls_key
    for name, is_plaintext in (
        ("grpc_listen", with_grpc and not has_tls),
        ("http_listen", not has_tls),
        ("metrics_listen", settings.metrics_listen),
    ):
        address = getattr(settings, name)
        if is_plaintext and not is_loopback(address):
            yield name, address


def upstream_credentials(settings: Settings, server: str) -> ReloadedCredentials | None:
    """Return what `academy edge` uses for its server; None for plaintext.

    Raises ConfigurationError with a line per fault.
    """
    faults = [*_incomplete_pair(settings, "client_cert", "client_key")]
    if settings.client_cert and not settings.server_ca:
        faults.append(
            "CLIENT_CERT: a client certificate needs TLS: set SERVER_CA to the "
            "PEM file of the authority that issued the certificate of the server"
        )
    if not (settings.server_ca or settings.allow_plaintext or is_loopback(server)):
        faults.append(
            f"SERVER_CA: {server} is not a loopback address: set SERVER_CA to the PEM "
            "file of the authority that issued its certificate, or set "
            "ALLOW_PLAINTEXT=1"
        )
    if faults:
        raise ConfigurationError("\n".join(faults))
    if settings.server_ca is None:
        return None
    return ReloadedCredentials(
        CredentialFiles(
            certificate=_file("CLIENT_CERT", settings.client_cert),
            key=_file("CLIENT_KEY", settings.client_key),
            authorities=_file("SERVER_CA", settings.server_ca),
        )
    )


def _incomplete_pair(settings: Settings, *names: str) -> Iterator[str]:
    """Yield a fault if only one of a certificate and its key is set."""
    missing = [name.upper() for name in names if getattr(settings, name) is None]
    if len(missing) == 1:
        (present,) = {name.upper() for name in names} - {*missing}
        yield f"{missing[0]}: must be set, because {present} is set"


def _client_certificate_faults(settings: Settings) -> Iterator[str]:
    if settings.client_ca and not (settings.tls_cert or settings.tls_key):
        yield "CLIENT_CA: client certificates need TLS: set TLS_CERT and TLS_KEY"
    if settings.service_certificates and not settings.client_ca:
        yield (
            "SERVICE_CERTIFICATES: needs verified client certificates: set CLIENT_CA "
            "to the PEM file of the authority that issues them"
        )


def _file(setting: str, path: Path | None) -> PemFile | None:
    return PemFile(setting, path) if path else None
