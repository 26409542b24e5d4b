"""Metrics of TLS, which exist only if TLS is on."""

from __future__ import annotations

from collections.abc import Iterator

from server.composition.application import Application
from server.composition.tls import ListenerTls
from server.observability.metrics import definitions
from server.observability.metrics.exposition import number


def tls_families(tls: ListenerTls, application: Application) -> Iterator[str]:
    """Return the metrics of the listeners' TLS; none for plaintext."""
    expires_at = tls.certificate_expires_at
    if expires_at is None:
        return
    yield number(definitions.CERTIFICATE_EXPIRY, expires_at.timestamp())
    yield number(definitions.TLS_HANDSHAKES, tls.handshakes)
    yield number(definitions.CALLING_CONNECTIONS, application.connections.used)
    refused = application.service_keys.refused_certificates
    yield number(definitions.CERTIFICATES_REFUSED, refused)
