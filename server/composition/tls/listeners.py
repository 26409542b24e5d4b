"""TLS of the listeners: gRPC server credentials and an SSLContext for HTTP.

Both look at the files when a connection begins, so that a renewed certificate is in use
from the next handshake on. Open connections keep the one they began with.
"""

from __future__ import annotations

import ssl
from contextlib import suppress

import grpc

from server.composition.tls.files import Credentials
from server.composition.tls.reload import ReloadedCredentials

# Of TLS 1.2: forward secrecy and authenticated encryption only, as in gRPC.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
MIN_VERSION = ssl.TLSVersion.TLSv1_2  # gRPC's own minimum, too


class GrpcTls:
    """Server credentials for gRPC. With authorities, clients need a certificate."""

    def __init__(self, credentials: ReloadedCredentials) -> None:
        self._credentials = credentials
        self._in_use = credentials.current()
        self.handshakes = 0  # connections that began one
        self.server_credentials: grpc.ServerCredentials = (
            grpc.dynamic_ssl_server_credentials(
                _configuration(self._in_use),
                self._changed_configuration,  # type: ignore[arg-type]  # or None
                self._in_use.authorities is not None,
            )
        )

    def _changed_configuration(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the configuration if it changed; gRPC calls this per connection."""
        self.handshakes += 1
        credentials = self._credentials.current()
        if credentials is self._in_use:
            return None
        self._in_use = credentials
        return _configuration(credentials)


def _configuration(credentials: Credentials) -> grpc.ServerCertificateConfiguration:
    pair = credentials.key or b"", credentials.certificate or b""  # a server has both
    return grpc.ssl_server_certificate_configuration([pair], credentials.authorities)


class HttpTls:
    """The SSLContext of the HTTP listener.

    Its certificate is chosen at each handshake: a context that is loaded completely or
    not at all replaces it, whereas loading a faulty pair into the context in use would
    leave it without a key.
    """

    def __init__(self, credentials: ReloadedCredentials) -> None:
        self._credentials = credentials
        self._in_use = credentials.current()
        self._newest = self.context = self._load()
        # Called for every handshake, also one without a server name.
        self.context.sni_callback = self._choose_context

    def _choose_context(
        self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext
    ) -> None:
        credentials = self._credentials.current()
        if credentials is not self._in_use:
            # A file that changed once more is read again at the next handshake.
            with suppress(OSError):
                self._newest = self._load()
                self._in_use = credentials
        connection.context = self._newest

    def _load(self) -> ssl.SSLContext:
        """Return a context with the certificate and key of the files."""
        files = self._credentials.files
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = MIN_VERSION
        context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
        context.set_ciphers(_CIPHERS)
        context.set_alpn_protocols(["http/1.1"])
        if files.certificate and files.key:
            context.load_cert_chain(files.certificate.path, files.key.path)
        return context
