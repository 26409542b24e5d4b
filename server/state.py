"""What `academy up` keeps in STATE_DIR: its secret, and where its servers are."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
from pydantic import SecretStr

from server.config import Settings

_SECRET = "secret_key"  # noqa: S105 - a file's name
_ENDPOINTS = "endpoints.json"


def kept_secret(folder: Path) -> SecretStr:
    """Give the secret key kept there, making it the first time."""
    path = folder / _SECRET
    if not path.exists():
        _write(path, secrets.token_hex(32).encode())
    return SecretStr(path.read_text().strip())


def keep_endpoints(folder: Path, urls: Mapping[str, str]) -> None:
    """Write where the embedded servers listen, for the other commands."""
    _write(folder / _ENDPOINTS, orjson.dumps(dict(urls)))


def completed(settings: Settings) -> Settings:
    """Give the settings, with what `up` keeps in place of what is not set."""
    path = settings.state_dir / _ENDPOINTS
    found: dict[str, Any] = orjson.loads(path.read_bytes()) if path.exists() else {}
    kept = {name: SecretStr(url) for name, url in found.items()}
    if (settings.state_dir / _SECRET).exists():
        kept["secret_key"] = kept_secret(settings.state_dir)
    missing = {n: v for n, v in kept.items() if getattr(settings, n) is None}
    return settings.model_copy(update=missing)


def _write(path: Path, content: bytes) -> None:
    """Write a file that only its owner reads; whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    mine = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(mine, "wb") as file:
        file.write(content)
    draft.replace(path)
