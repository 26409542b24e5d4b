"""How pg_dump and pg_restore connect: without a secret on the command line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from server.store.backups.errors import BackupError

# PG*: what libpq reads, as asyncpg does. The programs get no setting of the service.
_PASSED = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR")


@dataclass(frozen=True, slots=True)
class LibpqTarget:
    """A URL without secrets, and the environment, which holds the password."""

    url: str
    environment: Mapping[str, str] = field(repr=False)

    def masked(self, text: str) -> str:
        """Return the text without the password."""
        password = self.environment.get("PGPASSWORD")
        return text.replace(password, "***") if password else text


def libpq_target(database_url: str) -> LibpqTarget:
    """Return the target of a valid DATABASE_URL.

    Raises BackupError for a parameter that only the command line could hold.
    """
    parts = urlsplit(database_url)
    # libpq takes + literally
    pairs = parse_qsl(parts.query.replace("+", "%2B"))
    parameters = {"sslmode" if k == "ssl" else k: v for k, v in pairs if v}
    if "sslpassword" in parameters:
        raise BackupError(
            "DATABASE_URL: sslpassword would be visible to other users of this "
            "machine: use an sslkey without a password for backups"
        )
    credentials, at, hosts = parts.netloc.rpartition("@")
    user, _, encoded_password = credentials.partition(":")
    password = parameters.pop("password", unquote(encoded_password))
    environment = {name: os.environ[name] for name in _PASSED if name in os.environ}
    environment |= {k: v for k, v in os.environ.items() if k.startswith("PG")}
    environment["LC_ALL"] = "C"
    if password:
        environment["PGPASSWORD"] = password
    query = urlencode(parameters, quote_via=quote)
    url = f"postgresql://{user}{at}{hosts}{parts.path}" + (f"?{query}" if query else "")
    return LibpqTarget(url, environment)
