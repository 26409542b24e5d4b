"""OIDC_PROVIDERS: what is refused at start, and what `academy doctor` finds."""

import json
from pathlib import Path
from typing import Any

import pytest

from server.cli.monitoring.checks import displayed_settings
from server.cli.monitoring.provider_checks import check_identity_providers
from server.config import ConfigurationError, load
from tests.identity_provider import (
    CLIENT_SECRET,
    Response,
    entry,
    fake_provider,
    write_entries,
)

GOOGLE = "https://accounts.google.com"


def faults(path: Path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(oidc_providers=str(path))
    return str(caught.value)


def test_entries_are_read(tmp_path: Path) -> None:
    """The secret is that of the file, and is displayed nowhere."""
    path = write_entries(tmp_path, entry("google", GOOGLE, tmp_path))
    settings = load(oidc_providers=str(path))
    (provider,) = settings.oidc_providers
    assert provider.client_secret
    assert provider.client_secret.get_secret_value() == CLIENT_SECRET
    assert provider.scopes == ("openid", "email", "profile")
    shown = displayed_settings(settings)["OIDC_PROVIDERS"]
    assert shown == f"(google ({GOOGLE}),)"
    assert CLIENT_SECRET not in repr(settings)
    assert load(oidc_providers="").oidc_providers == ()


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"id": "Google Inc"}, "entry 2 (Google Inc): id: must match pattern"),
        ({"id": 7}, "entry 2: id: must be a valid string"),
        ({"name": ""}, "entry 2 (second): name: must have at least 1 character"),
        ({"client_id": None}, "entry 2 (second): client_id: must be a valid string"),
        ({"colour": "red"}, "entry 2 (second): colour: is not a known field"),
        ({"client_secret": "x"}, "client_secret: must be in a file that"),
        ({"client_secret_file": "no"}, "client_secret_file: "),
        ({"client_secret_file": "empty"}, "must not be an empty file"),
        ({"ca_file": "empty"}, "must be a PEM file of certificates"),
        ({"ca_file": "no"}, "must be a PEM file of certificates"),
        ({"scopes": ["email"]}, "entry 2 (second): scopes: must contain openid"),
        ({"scopes": ["openid email"]}, "scopes: must contain openid"),
        ({"scopes": ["openid", "a b"]}, "scopes: must be a list of words"),
        ({"allow_private_addresses": 1}, "allow_private_addresses: must be a valid"),
        ({"issuer": "http://idp.test"}, "issuer: must begin with https://"),
        ({"issuer": "http://10.0.0.1"}, "issuer: must begin with https://"),
        (
            {"issuer": "http://localhost:1", "allow_private_addresses": False},
            "issuer: must begin with https://",
        ),
        ({"issuer": "accounts.google.com"}, "issuer: must be a URL such as"),
        ({"issuer": "https://"}, "issuer: must be a URL such as"),
        ({"issuer": f"{GOOGLE}?a=b"}, "issuer: must be a URL such as"),
        ({"issuer": f"{GOOGLE}#a"}, "issuer: must be a URL such as"),
        ({"issuer": "https://ana@idp.test"}, "issuer: must be a URL such as"),
        ({"issuer": "https://idp.test:99999"}, "issuer: must be a URL such as"),
        ({"issuer": "https://idp.t\u00e9st"}, "issuer: must be a URL such as"),
        ({"issuer": "https://idp\\.test"}, "issuer: must be a URL such as"),
        ({"id": "first"}, "must not contain the id first twice"),
    ],
)
def test_faults_name_the_entry_and_the_rule(
    tmp_path: Path, changes: dict[str, Any], fault: str
) -> None:
    (tmp_path / "empty").touch()
    entries = (
        entry("first", GOOGLE, tmp_path),
        entry("second", GOOGLE, tmp_path) | changes,
    )
    message = faults(write_entries(tmp_path, *entries))
    assert message.startswith("OIDC_PROVIDERS: ")
    assert fault in message
    assert CLIENT_SECRET not in message


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    message = faults(write_entries(tmp_path, {"id": "a"}, 7, {"id": "b", "name": "B"}))
    for fault in (
        "entry 1 (a): name: is required",
        "entry 1 (a): issuer: is required",
        "entry 2: must be an object",
        "entry 3 (b): client_id: is required",
    ):
        assert fault in message


@pytest.mark.parametrize("content", ["", "{", '{"id": "a"}', "7", "[" * 100_000])
def test_file_must_hold_a_list(tmp_path: Path, content: str) -> None:
    path = tmp_path / "providers.json"
    path.write_text(content)
    assert faults(path).startswith("OIDC_PROVIDERS: ")
    assert "cannot be read" in faults(tmp_path / "nothing.json")
    assert "cannot be read" in faults(tmp_path)


def test_large_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "providers.json"
    path.write_text(json.dumps(["x" * 2**20]))
    assert "must have at most 1048576 bytes" in faults(path)


async def test_doctor_reads_what_providers_publish(tmp_path: Path) -> None:
    assert await check_identity_providers(load()) == []
    async with fake_provider() as working, fake_provider() as broken:
        broken.responses["/keys"] = Response.of({"keys": []})
        path = write_entries(
            tmp_path,
            entry("school", working.issuer, tmp_path),
            entry("broken", broken.issuer, tmp_path),
            entry("away", "http://127.0.0.1:1", tmp_path),
        )
        settings = load(oidc_providers=str(path))
        found, without_keys, away = await check_identity_providers(settings)
        assert (found.check, found.ok) == ("identity", True)
        assert found.result == f"school ({working.issuer}): responds, 1 key"
        assert not without_keys.ok
        assert without_keys.result.endswith("no keys")
        assert not away.ok
        assert away.result.startswith("away (http://127.0.0.1:1): http://127.0.0.1:1/")
        assert "OIDC_PROVIDERS" in away.advice
