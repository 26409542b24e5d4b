"""STATE_DIR: the secret key that `academy up` made and its servers' addresses."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
from pydantic import SecretStr

from server.config import Settings, with_local_defaults

_SECRET_KEY_FILE = "secret_key"  # noqa: S105 - a file's name
_ENDPOINTS_FILE = "endpoints.json"


def load_or_create_secret_key(folder: Path) -> SecretStr:
    """Return the secret key of this folder; create it the first time."""
    path = folder / _SECRET_KEY_FILE
    if not path.exists():
        _write(path, secrets.token_hex(32).encode())
    return SecretStr(path.read_text().strip())


def save_endpoints(folder: Path, urls: Mapping[str, str]) -> None:
    """Save the URLs of the embedded servers, for the other commands."""
    _write(folder / _ENDPOINTS_FILE, orjson.dumps(dict(urls)))


def with_saved_values(settings: Settings) -> Settings:
    """Return the settings; what is not set comes from the folder if it is there."""
    path = settings.state_dir / _ENDPOINTS_FILE
    urls: dict[str, Any] = orjson.loads(path.read_bytes()) if path.exists() else {}
    saved = {name: SecretStr(url) for name, url in urls.items()}
    if (settings.state_dir / _SECRET_KEY_FILE).exists():
        saved["secret_key"] = load_or_create_secret_key(settings.state_dir)
    missing = {n: v for n, v in saved.items() if getattr(settings, n) is None}
    return settings.model_copy(update=missing)


def as_served(settings: Settings) -> Settings:
    """Return the settings with which a server runs beside this command.

    If a URL is only saved in the folder, that is `academy up` with its own defaults.
    """
    served = with_saved_values(settings)
    urls = (settings.database_url, settings.redis_url)
    is_up = urls != (served.database_url, served.redis_url)
    return with_local_defaults(served) if is_up else served


def _write(path: Path, content: bytes) -> None:
    """Write a file atomically, readable by its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    draft.replace(path)
