"""TLS of the listeners, and of the connection from `academy edge` to its server."""

from __future__ import annotations

import ssl
import stat
from collections.abc import Sequence
from datetime import timedelta

import grpc
import structlog

from server.composition.tls.listeners import GrpcTls, HttpTls
from server.composition.tls.reload import ReloadedCredentials
from server.composition.tls.settings import listener_credentials, plaintext_listeners
from server.config import Settings
from server.workers.poller import Poller
from server.workers.supervisor import Task

CHECK_INTERVAL = timedelta(minutes=1)
log = structlog.get_logger()


class ListenerTls:
    """TLS of the listeners of one process; without TLS_CERT both are plaintext.

    `server_credentials` are those of gRPC, `ssl_context` is that of HTTP, both made of
    `credentials`.
    """

    def __init__(self, credentials: ReloadedCredentials | None) -> None:
        self.credentials = credentials
        self._grpc = GrpcTls(credentials) if credentials else None
        self._http = HttpTls(credentials) if credentials else None

    @property
    def server_credentials(self) -> grpc.ServerCredentials | None:
        """The credentials of the gRPC listener; None for plaintext."""
        return self._grpc.server_credentials if self._grpc else None

    @property
    def ssl_context(self) -> ssl.SSLContext | None:
        """The context of the HTTP listener; None for plaintext."""
        return self._http.context if self._http else None

    @property
    def handshakes(self) -> int:
        """The gRPC connections that began a handshake, successful or not."""
        return self._grpc.handshakes if self._grpc else 0

    def tasks(self) -> Sequence[Task]:
        """Return the tasks that watch the certificate while the process serves."""
        return (watch_task(self.credentials),) if self.credentials else ()


def open_listener_tls(settings: Settings, *, with_grpc: bool = True) -> ListenerTls:
    """Return the TLS of the listeners; log each one that is plaintext beyond loopback.

    Raises ConfigurationError with a line per fault of the settings or files.
    """
    tls = ListenerTls(listener_credentials(settings, with_grpc=with_grpc))
    if settings.tls_key and settings.tls_key.stat().st_mode & stat.S_IROTH:
        log.warning("private key is readable by every user", setting="TLS_KEY")
    for name, address in plaintext_listeners(settings, with_grpc=with_grpc):
        log.warning("listening without TLS", setting=name.upper(), address=address)
    return tls


def watch_task(credentials: ReloadedCredentials) -> Task:
    """Return the task that reloads a changed certificate and warns before it ends."""

    async def watch() -> None:
        credentials.warn_of_expiry()

    return Poller("certificate", watch, CHECK_INTERVAL)
