"""Certificates of test authorities, in the files that the TLS settings name."""

import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from server.composition.tls.files import CredentialFiles, PemFile
from server.config import Settings, load


def chain_pem(leaf: trustme.LeafCert) -> bytes:
    return b"".join(blob.bytes() for blob in leaf.cert_chain_pems)


def key_pem(leaf: trustme.LeafCert) -> bytes:
    return leaf.private_key_pem.bytes()


def serial_number(pem: bytes) -> int:
    return x509.load_pem_x509_certificates(pem)[0].serial_number


@dataclass(frozen=True, slots=True)
class Files:
    """A folder with the files of a server, whose certificates one authority issues."""

    folder: Path
    authority: trustme.CA = field(default_factory=trustme.CA)

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.authority.cert_pem.write_to_path(self.folder / "ca.pem")
        self.write(self.issue())

    def issue(self, *names: str, **details: Any) -> trustme.LeafCert:
        return self.authority.issue_cert(
            *(names or ("localhost", "127.0.0.1")), **details
        )

    def write(self, leaf: trustme.LeafCert) -> None:
        self.write_certificate(leaf)
        self.write_key(leaf)

    def write_certificate(self, leaf: trustme.LeafCert) -> None:
        (self.folder / "cert.pem").write_bytes(chain_pem(leaf))

    def write_key(self, leaf: trustme.LeafCert) -> None:
        (self.folder / "key.pem").write_bytes(key_pem(leaf))

    @property
    def serial_number(self) -> int:
        """The serial number of the certificate in the file."""
        return serial_number((self.folder / "cert.pem").read_bytes())

    @property
    def server_files(self) -> CredentialFiles:
        certificate, key = self.folder / "cert.pem", self.folder / "key.pem"
        return CredentialFiles(
            PemFile("TLS_CERT", certificate), PemFile("TLS_KEY", key)
        )

    def settings(self, *names: str, **values: Any) -> Settings:
        """Return settings with the server's pair, and the authority as each name."""
        return load(**self.environment(*names), **values)

    def environment(self, *names: str) -> dict[str, str]:
        pair = {"tls_cert": "cert.pem", "tls_key": "key.pem"}
        files = {**pair, **dict.fromkeys(names, "ca.pem")}
        return {name: str(self.folder / file) for name, file in files.items()}

    def channel_credentials(
        self, client: trustme.LeafCert | None = None
    ) -> grpc.ChannelCredentials:
        """Return the credentials of a client that trusts the authority."""
        return grpc.ssl_channel_credentials(
            self.authority.cert_pem.bytes(),
            key_pem(client) if client else None,
            chain_pem(client) if client else None,
        )

    def ssl_context(self) -> ssl.SSLContext:
        """Return the context of a client that trusts the authority."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context

    def issue_for_uri(self, uri: str, dns_name: str = "") -> tuple[bytes, bytes]:
        """Return key and certificate with a URI as alternative name; trustme has none.

        A `dns_name` is written as it is, whatever its form.
        """
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri)]
        if dns_name:
            names.append(x509.DNSName(dns_name))
        return self._sign(x509.SubjectAlternativeName(names))

    def issue_for_server(self, dns_name: str) -> tuple[bytes, bytes]:
        """Return key and certificate for servers only."""
        return self._sign(
            x509.SubjectAlternativeName([x509.DNSName(dns_name)]),
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
        )

    def issue_authority(self, not_after: datetime) -> bytes:
        """Return the certificate of another authority."""
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        return self._sign(constraints, not_after=not_after)[1]

    def _sign(
        self, *extensions: x509.ExtensionType, not_after: datetime | None = None
    ) -> tuple[bytes, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = x509.load_pem_x509_certificate(self.authority.cert_pem.bytes())
        end = not_after or datetime.now(UTC) + timedelta(days=1)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(issuer.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(end - timedelta(days=2))
            .not_valid_after(end)
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=True)
        signer: Any = serialization.load_pem_private_key(
            self.authority.private_key_pem.bytes(), None
        )
        certificate = builder.sign(signer, hashes.SHA256())
        return (
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
            certificate.public_bytes(serialization.Encoding.PEM),
        )
