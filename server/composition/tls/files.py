"""PEM files of certificates and private keys, and what is in them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from server.config import ConfigurationError


@dataclass(frozen=True, slots=True)
class PemFile:
    """A file, and the setting that names it."""

    setting: str
    path: Path

    def fault(self, message: str) -> ConfigurationError:
        """Return an error that names the setting and the file."""
        return ConfigurationError(f"{self.setting}: {self.path} {message}")

    def read(self) -> bytes:
        """Return the content. Raises ConfigurationError."""
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise self.fault(
                f"cannot be read ({error.strerror}): set {self.setting} to a PEM file "
                "that this process may read"
            ) from error


@dataclass(frozen=True, slots=True)
class CredentialFiles:
    """The files of one side of a connection.

    `certificate` and `key` are its own, both or neither; `authorities` are the
    certificate authorities whose certificates it accepts.
    """

    certificate: PemFile | None = None
    key: PemFile | None = None
    authorities: PemFile | None = None

    def paths(self) -> list[Path]:
        """Return the paths of the files that are set."""
        files = (self.certificate, self.key, self.authorities)
        return [file.path for file in files if file]


@dataclass(frozen=True, slots=True)
class Credentials:
    """The checked contents of the files.

    `expires_at` is when the certificate ends, `renew_by` when a warning is due.
    """

    certificate: bytes | None = None
    key: bytes | None = None
    authorities: bytes | None = None
    expires_at: datetime | None = None
    renew_by: datetime | None = None
