"""deploy/compose.yaml: valid, complete, and with settings that the service accepts."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import promql_parser as ast
import pytest
import yaml

from server.config import Settings
from tests.deploy.images import FOLDER, PINNED, VERSION, image_environment, stages
from tests.deploy.named_settings import SECRETS, load_named

PATH = FOLDER / "compose.yaml"
COMPOSE: dict[str, Any] = yaml.safe_load(PATH.read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
ACADEMY = SERVICES["academy"]
STARTED_BY_US = ("academy", "migrate")
POSTGRES_CONNECTIONS = 97  # max_connections of Postgres without those of superusers


def seconds(duration: str) -> float:
    return float(ast.parse_duration(duration).total_seconds())


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return the settings of the service in its container."""
    values = image_environment() | ACADEMY["environment"]
    values["PUBLIC_URL"] = "https://academy.example"  # the operator's
    return load_named(values, tmp_path, monkeypatch)


def test_file_has_the_form_of_the_compose_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema"]
    command += ["--builtin-schema", "vendor.compose-spec", str(PATH)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_images_are_pinned() -> None:
    images = {name: service["image"] for name, service in SERVICES.items()}
    for name in STARTED_BY_US:
        assert images.pop(name) == f"academy:{VERSION}"
    for image in images.values():
        assert PINNED.fullmatch(image), image


def test_settings_are_valid_and_fit_the_containers(settings: Settings) -> None:
    assert settings.redis_url
    assert settings.redis_url.get_secret_value() == "redis://valkey"
    assert settings.allow_plaintext  # the ports are published on loopback addresses
    assert SERVICES["migrate"]["environment"] == ACADEMY["environment"]
    connections = settings.workers * (settings.database_pool_size + 2)
    assert connections <= POSTGRES_CONNECTIONS


def test_ports_are_published_on_the_loopback_address_only(settings: Settings) -> None:
    listeners = (settings.grpc_listen, settings.http_listen, settings.metrics_listen)
    ports = [address.rpartition(":")[2] for address in listeners]
    assert ACADEMY["ports"] == [f"127.0.0.1:{port}:{port}" for port in ports]
    assert [name for name, s in SERVICES.items() if "ports" in s] == ["academy"]


def test_proxy_on_the_machine_is_trusted(settings: Settings) -> None:
    """Containers see it at the gateway of the network whose ports are published."""
    (network,) = COMPOSE["networks"]["published"]["ipam"]["config"]
    assert [str(n) for n in settings.trusted_proxies] == [f"{network['gateway']}/32"]


def test_stop_waits_for_the_drain(settings: Settings) -> None:
    grace = seconds(ACADEMY["stop_grace_period"])
    assert grace >= settings.lame_duck.total_seconds() + 25


@pytest.mark.parametrize("name", STARTED_BY_US)
def test_containers_of_the_service_have_no_rights(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["tmpfs"] == ["/tmp"]


def test_secrets_are_files_that_the_service_reads() -> None:
    declared = COMPOSE["secrets"]
    assert set(declared) == {*ACADEMY["secrets"], "postgres_password"}
    mounted = {f"/run/secrets/{name}" for name in ACADEMY["secrets"]}
    files = {v for k, v in ACADEMY["environment"].items() if k.endswith("_FILE")}
    assert files == mounted
    assert set(ACADEMY["secrets"]) <= SECRETS.keys()
    for name, secret in declared.items():
        assert secret == {"file": f"secrets/{name}"}


def test_erasure_log_is_on_a_volume_that_the_service_writes(
    settings: Settings,
) -> None:
    """Docker copies the owner of the image's folder to a new volume."""
    (mount,) = ACADEMY["volumes"]
    volume, _, folder = mount.partition(":")
    assert volume in COMPOSE["volumes"]
    assert volume not in {m.partition(":")[0] for m in SERVICES["postgres"]["volumes"]}
    assert settings.erasure_log
    assert str(settings.erasure_log.parent) == folder
    runs = [i.text for i in stages()[-1] if i.name == "RUN"]
    created = f"install --directory --owner=academy --group=academy .*{folder}$"
    assert any(re.search(created, text) for text in runs)


def test_schema_is_upgraded_before_the_service_starts() -> None:
    assert SERVICES["migrate"]["command"] == ["migrate"]
    wait = {"condition": "service_completed_successfully"}
    assert ACADEMY["depends_on"]["migrate"] == wait
    assert SERVICES["migrate"]["depends_on"]["postgres"] == {
        "condition": "service_healthy"
    }


def test_stores_are_reached_by_the_service_alone() -> None:
    assert COMPOSE["networks"]["stores"]["internal"]
    for name in ("postgres", "valkey"):
        assert SERVICES[name]["networks"] == ["stores"]
    database_url = SECRETS["database_url"]
    assert re.search("@postgres/academy$", database_url)
    assert SERVICES["postgres"]["environment"]["POSTGRES_DB"] == "academy"
