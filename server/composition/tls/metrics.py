"""Metrics of TLS, which exist only if TLS is on."""

from __future__ import annotations

from collections.abc import Iterator

from server.composition.application import Application
from server.composition.tls import ListenerTls
from server.composition.tls.reload import ReloadedCredentials
from server.observability.metrics import definitions
from server.observability.metrics.exposition import number


def tls_families(tls: ListenerTls, application: Application) -> Iterator[str]:
    """Return the metrics of the listeners' TLS; none for plaintext."""
    if tls.credentials is None:
        return
    yield from certificate_families(tls.credentials)
    yield number(definitions.TLS_HANDSHAKES, tls.handshakes)
    yield number(definitions.CALLING_CONNECTIONS, application.connections.used)
    refused = application.service_keys.refused_certificates
    yield number(definitions.CERTIFICATES_REFUSED, refused)


def certificate_families(*credentials: ReloadedCredentials | None) -> Iterator[str]:
    """Return when the first certificate of a process expires and must be renewed."""
    in_use = [each.in_use for each in credentials if each]
    for definition, dates in (
        (definitions.CERTIFICATE_EXPIRY, [c.expires_at for c in in_use]),
        (definitions.CERTIFICATE_RENEWAL, [c.renew_by for c in in_use]),
    ):
        if known := [date for date in dates if date]:
            yield number(definition, min(known).timestamp())
