"""OIDC_PROVIDERS: the file that lists identity providers, and its validation.

Every fault of the file is reported at once, with its entry and its field.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import SplitResult, urlsplit

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StrictBool,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import NoDecode

MAX_FILE_SIZE = 1024 * 1024
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")  # RFC 6749 3.3
_SHOULD = re.compile("^(Input|String|Tuple) should")
_RULES = {
    "missing": "is required",
    "extra_forbidden": "is not a known field",
    "model_type": "must be an object",
}
_HOST = re.compile(r"[A-Za-z0-9.:-]+")


def is_loopback_host(host: str) -> bool:
    """Return whether a host of a URL is this machine."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class IdentityProviderEntry(BaseModel):
    """One entry of the file. `client_secret` is the content of its file."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
    name: Annotated[str, Field(min_length=1, max_length=100)]
    issuer: Annotated[str, Field(max_length=255)]
    client_id: Annotated[str, Field(min_length=1, max_length=255)]
    client_secret_file: Path | None = None
    scopes: tuple[str, ...] = ("openid", "email", "profile")
    ca_file: Path | None = None
    allow_private_addresses: StrictBool = False
    client_secret: SecretStr | None = None

    def __repr__(self) -> str:
        return f"{self.id} ({self.issuer})"

    @model_validator(mode="after")
    def _check(self) -> IdentityProviderEntry:
        _check_issuer(self.issuer, self.allow_private_addresses)
        if "openid" not in self.scopes:
            raise ValueError("scopes: must contain openid")
        if not all(_SCOPE.fullmatch(scope) for scope in self.scopes):
            raise ValueError("scopes: must be a list of words without spaces")
        if self.client_secret_file and not self.client_secret:
            raise ValueError("client_secret_file: must not be an empty file")
        return self


def _check_issuer(issuer: str, allow_private: bool) -> None:
    try:
        parts = urlsplit(issuer)
        valid = _is_plain_url(issuer, parts)
    except ValueError:
        valid = False
    if not valid:
        raise ValueError(
            "issuer: must be a URL such as https://accounts.example.com, without "
            "credentials, query and fragment"
        )
    if parts.scheme != "https" and not (
        allow_private and is_loopback_host(parts.hostname or "")
    ):
        raise ValueError(
            "issuer: must begin with https://; http:// is for a loopback host, with "
            "allow_private_addresses"
        )


def _is_plain_url(url: str, parts: SplitResult) -> bool:
    """Return whether a URL has a scheme, a host, a valid port and a path only."""
    return (
        parts.scheme in ("http", "https")
        and _HOST.fullmatch(parts.hostname or "") is not None
        and parts.port != 0
        and "@" not in parts.netloc
        and not any(mark in url for mark in "?#\\ ")
        and url.isascii()
        and url.isprintable()
    )


def _read_file(value: Any) -> Any:
    """Return the entries of the file at this path."""
    if not isinstance(value, (str, Path)):
        return value
    if not str(value).strip():
        return ()
    path = Path(str(value).strip())
    try:
        entries = orjson.loads(_read(path))
    except orjson.JSONDecodeError as error:
        raise ValueError(f"must be the path of a JSON file: {error}") from None
    except OSError as error:
        raise ValueError(
            f"must be the path of a JSON file; it cannot be read: {error.strerror}"
        ) from None
    if not isinstance(entries, list):
        raise ValueError(
            'the file must hold a list such as [{"id": "google", "name": "Google", '
            '"issuer": "https://accounts.google.com", "client_id": "..."}]'
        )
    faults: list[str] = []
    parsed = [_entry(number, raw, path, faults) for number, raw in enumerate(entries)]
    if faults:
        raise ValueError("; ".join(faults))
    return tuple(parsed)


def _entry(
    number: int, raw: Any, path: Path, faults: list[str]
) -> IdentityProviderEntry | None:
    """Return an entry; None after adding its faults."""
    name = raw.get("id") if isinstance(raw, dict) else None
    place = f"entry {number + 1}" + (f" ({name})" if isinstance(name, str) else "")
    try:
        return IdentityProviderEntry.model_validate(_with_files(raw, path.parent))
    except ValidationError as error:
        faults += [
            ": ".join([place, *_field_and_rule(details)])
            for details in error.errors(include_input=False, include_url=False)
        ]
    except ValueError as error:
        faults.append(f"{place}: {error}")
    return None


def _field_and_rule(details: ErrorDetails) -> list[str]:
    field = ".".join(str(part) for part in details["loc"])
    message = str(details["msg"]).removeprefix("Value error, ")
    message = _RULES.get(details["type"]) or _SHOULD.sub("must", message)
    return [field, message] if field else [message]


def _with_files(raw: Any, folder: Path) -> Any:
    """Return an entry with its secret; relative paths are those of its folder."""
    if not isinstance(raw, dict):
        return raw
    if "client_secret" in raw:
        raise ValueError(
            "client_secret: must be in a file that client_secret_file names"
        )
    values = dict(raw)
    for field in ("client_secret_file", "ca_file"):
        if isinstance(values.get(field), str):
            values[field] = folder / values[field]
    if isinstance(path := values.get("client_secret_file"), Path):
        values["client_secret"] = _secret(path)
    if isinstance(path := values.get("ca_file"), Path):
        _check_authorities(path)
    return values


def _secret(path: Path) -> str | None:
    try:
        return _read(path).decode().strip() or None
    except (OSError, UnicodeDecodeError) as error:
        cause = getattr(error, "strerror", None) or "it is not text"
        raise ValueError(
            f"client_secret_file: {path} cannot be read: {cause}"
        ) from None


def _check_authorities(path: Path) -> None:
    try:
        ssl.create_default_context(cafile=path)
    except OSError as error:  # ssl.SSLError is one, too
        raise ValueError(
            f"ca_file: {path} must be a PEM file of certificates: {error.strerror}"
        ) from None


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(MAX_FILE_SIZE + 1)
    if len(content) > MAX_FILE_SIZE:
        raise ValueError(f"{path} must have at most {MAX_FILE_SIZE} bytes")
    return content


def _check_unique(
    entries: Sequence[IdentityProviderEntry],
) -> Sequence[IdentityProviderEntry]:
    ids = [entry.id for entry in entries]
    for entry in ids:
        if ids.count(entry) > 1:
            raise ValueError(f"must not contain the id {entry} twice")
    return entries


IdentityProviderEntries = Annotated[
    tuple[IdentityProviderEntry, ...],
    NoDecode,
    BeforeValidator(_read_file),
    AfterValidator(_check_unique),
]
