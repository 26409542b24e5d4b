"""Certificate files that are read again when they change."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog

from server.composition.tls.certificates import read_credentials
from server.composition.tls.files import CredentialFiles, Credentials
from server.config import ConfigurationError
from server.domain.clock import Clock, system_clock

_WARNING_INTERVAL = timedelta(days=1)
# Files that are invalid may become valid without a change: a certificate by the time,
# or a file that is changed again before the clock of the file system ticks.
_RETRY_INTERVAL = timedelta(minutes=1)
log = structlog.get_logger()
_Signature = tuple[tuple[int, int, int] | None, ...]


class ReloadedCredentials:
    """Credentials that follow their files.

    Files that are invalid, such as a new certificate beside the old key, change
    nothing: the previous credentials stay in use until the files are valid again.
    Safe to use from several threads: gRPC performs handshakes in its own.
    """

    def __init__(self, files: CredentialFiles, clock: Clock = system_clock) -> None:
        """Read the files. Raises ConfigurationError."""
        self.files = files
        self._clock = clock
        self._lock = threading.Lock()
        self._signature = self._read_signature()  # before the contents
        self._current = read_credentials(files, clock())
        self._refused: _Signature | None = None
        self._retry_at = datetime.min.replace(tzinfo=UTC)
        self._warned_at: datetime | None = None

    @property
    def in_use(self) -> Credentials:
        """The credentials as they were read last."""
        return self._current

    def current(self) -> Credentials:
        """Return the newest valid credentials. Costs a stat per file."""
        signature = self._read_signature()
        if self._must_read(signature):
            with self._lock:
                if self._must_read(signature):
                    self._read(signature)
        return self._current

    def warn_of_expiry(self) -> None:
        """Log a warning, once a day, in the days before the certificate ends."""
        now, current = self._clock(), self.current()
        expires_at, renew_by = current.expires_at, current.renew_by
        if expires_at is None or renew_by is None or now < renew_by:
            return
        if self._warned_at and now - self._warned_at < _WARNING_INTERVAL:
            return
        self._warned_at = now
        log.warning(
            "certificate expires soon" if now < expires_at else "certificate expired",
            setting=self._setting,
            expires_at=expires_at.isoformat(),
            days_left=(expires_at - now).days,
        )

    def _must_read(self, signature: _Signature) -> bool:
        if signature == self._refused:
            return self._clock() >= self._retry_at
        return signature != self._signature

    def _read(self, signature: _Signature) -> None:
        try:
            credentials = read_credentials(self.files, self._clock())
        except ConfigurationError as error:
            if signature != self._refused:  # log once, not at every attempt
                log.warning("certificate not reloaded", cause=str(error))
            self._refused = signature
            self._retry_at = self._clock() + _RETRY_INTERVAL
        else:
            self._use(credentials, signature)

    def _use(self, credentials: Credentials, signature: _Signature) -> None:
        self._signature = signature
        self._refused = None
        if credentials == self._current:  # the same content in new files
            return
        self._current = credentials
        self._warned_at = None
        end = credentials.expires_at
        log.info(
            "certificate reloaded",
            setting=self._setting,
            expires_at=end.isoformat() if end else None,
        )

    @property
    def _setting(self) -> str:
        file = self.files.certificate or self.files.authorities
        return file.setting if file else ""

    def _read_signature(self) -> _Signature:
        return tuple(_identity(path) for path in self.files.paths())


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Return what changes with a file's content; None if it cannot be read."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
