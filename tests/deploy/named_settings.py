"""Settings that deployment files name, read as the service reads them."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from server.config import Settings, load

# What an operator writes into the files that NAME_FILE names.
SECRETS = {
    "database_url": "postgresql://academy:Blue7horse@postgres/academy",
    "redis_url": "rediss://:Blue7horse@valkey",
    "secret_key": "0123456789abcdef" * 4,
    "smtp_url": "smtp://academy:Blue7horse@mail:587",
}


def load_named(
    environment: Mapping[str, str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    secrets: Mapping[str, str] = SECRETS,
) -> Settings:
    """Return the settings of an environment, whose secrets are files in a folder.

    Raises ConfigurationError if a value is invalid.
    """
    known = {name.upper() for name in Settings.model_fields}
    monkeypatch.chdir(folder)  # which has no .env
    for name, value in environment.items():
        assert name.removesuffix("_FILE") in known, f"{name} is no setting"
        if name.endswith("_FILE"):
            file = folder / Path(value).name
            file.write_text(secrets[file.name] + "\n")
            value = str(file)
        monkeypatch.setenv(name, value)
    return load("database_url", "redis_url", "secret_key")
