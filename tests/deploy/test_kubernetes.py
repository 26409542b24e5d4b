"""deploy/kubernetes: valid manifests that fit the image and the settings."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from server.config import ConfigurationError, Settings
from server.observability.metrics.definitions import DEFINITIONS, MetricType
from tests.deploy.images import (
    FOLDER,
    VERSION,
    Instruction,
    image_environment,
    stages,
)
from tests.deploy.named_settings import SECRETS, load_named
from tests.deploy.rules import ROOT

Manifest = dict[str, Any]
KUBERNETES_VERSIONS = ("1.35", "1.37")  # the oldest and the newest that is supported
POSTGRES_CONNECTIONS = 97  # max_connections of Postgres without those of superusers
SECRET_EXAMPLE = FOLDER / "kubernetes/secret.yaml.example"


def read(path: Path) -> Iterator[Manifest]:
    yield from yaml.safe_load_all(path.read_text())


MANIFESTS = [m for path in sorted(FOLDER.glob("kubernetes/*.yaml")) for m in read(path)]
(SECRET,) = read(SECRET_EXAMPLE)


def manifest(kind: str) -> Manifest:
    (found,) = [m for m in MANIFESTS if m["kind"] == kind]
    return found


CONFIG = manifest("ConfigMap")["data"]
DEPLOYMENT = manifest("Deployment")["spec"]
POD = DEPLOYMENT["template"]["spec"]
JOB_POD = manifest("Job")["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
(JOB_CONTAINER,) = JOB_POD["containers"]
PORTS = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return the settings of the service in a pod."""
    return load_named(image_environment() | CONFIG, tmp_path, monkeypatch)


def names_of_manifests() -> list[str]:
    return [f"{m['kind']} {m['metadata']['name']}" for m in [*MANIFESTS, SECRET]]


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("manifest", [*MANIFESTS, SECRET], ids=names_of_manifests())
def test_manifest_is_valid(manifest: Manifest, version: str) -> None:
    """Fields that Kubernetes does not know are refused, too."""
    kubernetes_validate.validate(manifest, version, strict=True)


def test_settings_are_valid(settings: Settings) -> None:
    assert settings.tls_cert
    assert settings.tls_key


def test_example_of_the_secret_must_be_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service names each value that nobody has replaced."""
    values = SECRET["stringData"]
    assert values.keys() == SECRETS.keys()
    with pytest.raises(ConfigurationError) as error:
        load_named(image_environment() | CONFIG, tmp_path, monkeypatch, values)
    named = {line.partition(":")[0] for line in str(error.value).splitlines()}
    assert named == {name.upper() for name in SECRETS}


def test_files_that_settings_name_are_mounted() -> None:
    (secrets,) = [m for m in CONTAINER["volumeMounts"] if m["name"] == "secrets"]
    files = {value for name, value in CONFIG.items() if name.endswith("_FILE")}
    assert files == {f"{secrets['mountPath']}/{key}" for key in SECRET["stringData"]}
    (tls,) = [m for m in CONTAINER["volumeMounts"] if m["name"] == "tls"]
    pair = {CONFIG["TLS_CERT"], CONFIG["TLS_KEY"]}
    assert pair == {f"{tls['mountPath']}/tls.crt", f"{tls['mountPath']}/tls.key"}
    volumes = {v["name"]: v.get("secret", {}).get("secretName") for v in POD["volumes"]}
    del volumes["erasure-log"]
    assert volumes == {"secrets": "academy", "tls": "academy-tls", "tmp": None}


def test_erasure_log_is_on_a_volume_that_all_pods_share(settings: Settings) -> None:
    """It survives a pod, and the group of the container may write it."""
    (volume,) = [v for v in POD["volumes"] if v["name"] == "erasure-log"]
    claim = manifest("PersistentVolumeClaim")
    name = volume["persistentVolumeClaim"]["claimName"]
    assert name == claim["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    (mount,) = [m for m in CONTAINER["volumeMounts"] if m["name"] == "erasure-log"]
    assert not mount.get("readOnly")
    assert settings.erasure_log
    assert settings.erasure_log.parent == Path(mount["mountPath"])
    assert POD["securityContext"]["fsGroup"] == POD["securityContext"]["runAsGroup"]


def test_ports_are_those_that_the_service_listens_on(settings: Settings) -> None:
    listening = {
        "grpc": settings.grpc_listen,
        "https": settings.http_listen,
        "metrics": settings.metrics_listen,
    }
    ports = {name: int(a.rpartition(":")[2]) for name, a in listening.items()}
    assert ports == PORTS


def test_process_is_killed_only_after_its_drain(settings: Settings) -> None:
    grace = POD["terminationGracePeriodSeconds"]
    assert grace >= settings.lame_duck.total_seconds() + 25
    probe = CONTAINER["readinessProbe"]
    detected = probe["periodSeconds"] * probe["failureThreshold"]
    assert settings.lame_duck.total_seconds() > detected


def test_probes_ask_what_they_are_for() -> None:
    """A process that is not ready is not restarted."""
    paths = {"startupProbe": "/livez", "livenessProbe": "/livez"} | {
        "readinessProbe": "/readyz"
    }
    for name, path in paths.items():
        request = CONTAINER[name]["httpGet"]
        assert request == {"path": path, "port": "https", "scheme": "HTTPS"}


@pytest.mark.parametrize("pod", [POD, JOB_POD], ids=["Deployment", "Job"])
def test_pods_have_no_rights(pod: Manifest) -> None:
    (user,) = [i for i in stages()[-1] if i.name == "USER"]
    assert pod["securityContext"] == _pod_context(user)
    assert pod["automountServiceAccountToken"] is False
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _pod_context(user: Instruction) -> Manifest:
    uid, gid = map(int, user.text.split(":"))
    return {
        "runAsNonRoot": True,
        "runAsUser": uid,
        "runAsGroup": gid,
        "fsGroup": gid,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def test_job_runs_the_same_image_with_the_same_settings() -> None:
    """Each release has a job of its own: the template of a job cannot change."""
    for field in ("image", "envFrom", "volumeMounts"):
        assert JOB_CONTAINER[field] == CONTAINER[field]
    assert JOB_POD["volumes"] == POD["volumes"]
    assert CONTAINER["image"].endswith(f"/academy:{VERSION}")
    assert JOB_CONTAINER["args"] == ["migrate"]
    name = manifest("Job")["metadata"]["name"]
    assert name == f"academy-migrate-{VERSION.replace('.', '-')}"
    assert f"job/{name}\n" in (ROOT / "docs/operations.md").read_text()


def test_selectors_find_the_pods() -> None:
    labels = DEPLOYMENT["template"]["metadata"]["labels"]
    assert DEPLOYMENT["selector"]["matchLabels"] == labels
    assert manifest("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    for service in (m["spec"] for m in MANIFESTS if m["kind"] == "Service"):
        assert service["selector"] == labels
        assert {port["targetPort"] for port in service["ports"]} <= PORTS.keys()
    (rule,) = manifest("NetworkPolicy")["spec"]["podSelector"]["matchExpressions"]
    job_labels = manifest("Job")["spec"]["template"]["metadata"]["labels"]
    for found in (labels, job_labels):
        assert found[rule["key"]] in rule["values"]


def test_autoscaler_counts_a_metric_of_the_service(settings: Settings) -> None:
    spec = manifest("HorizontalPodAutoscaler")["spec"]
    assert spec["scaleTargetRef"] == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "name": "academy",
    }
    (name,) = [m["pods"]["metric"]["name"] for m in spec["metrics"] if "pods" in m]
    assert DEFINITIONS[name].type is MetricType.GAUGE
    surge = DEPLOYMENT["strategy"]["rollingUpdate"]["maxSurge"]
    processes = (spec["maxReplicas"] + surge) * settings.workers
    connections = processes * (settings.database_pool_size + 2)
    assert connections <= POSTGRES_CONNECTIONS
    assert "replicas" not in DEPLOYMENT


def test_network_policy_names_the_ports_of_the_pods() -> None:
    ingress = manifest("NetworkPolicy")["spec"]["ingress"]
    named = {port["port"] for rule in ingress for port in rule["ports"]}
    assert named == PORTS.keys()
    for rule in ingress:  # none allows every source
        assert rule["from"]


def test_no_client_in_the_cluster_can_be_a_trusted_proxy(settings: Settings) -> None:
    """A pod whose address is trusted chooses the address that its calls seem to have.

    Which range is only the ingress controller's depends on the cluster: no file can
    name it while the policy admits other pods to the same ports.
    """
    controller = {"matchLabels": {"kubernetes.io/metadata.name": "ingress-nginx"}}
    ingress = manifest("NetworkPolicy")["spec"]["ingress"]
    others = [r for r in ingress if r["from"] != [{"namespaceSelector": controller}]]
    assert len(others) == len(ingress) - 1
    reached = {port["port"] for rule in others for port in rule["ports"]}
    believing = reached & {"grpc", "https"}
    assert not (believing and settings.trusted_proxies), believing
