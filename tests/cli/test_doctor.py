"""The checks of `academy doctor`: what each finds, and what it advises."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from server.cli import state_dir
from server.cli.monitoring.checks import displayed_settings, run_checks
from server.cli.monitoring.findings import Finding
from server.cli.monitoring.process_checks import check_process
from server.config import load
from server.store.connections.connect import Database
from server.store.credentials.service_keys import PostgresServiceKeys
from tests.certificates import Files
from tests.cli.metrics_listener import metrics_listener
from tests.fakes import NOON, Clock
from tests.logs import captured_lines
from tests.mailbox import address_of, bound_socket, mailbox
from tests.valkey_nodes import valkey_cluster

AWAY = "postgresql://ana:hunter2@127.0.0.1:1/academy"


async def check(name: str, **settings: Any) -> Finding:
    findings = await run_checks(load(**settings))
    (finding,) = [finding for finding in findings if finding.check == name]
    return finding


async def test_mail_needs_a_server_and_a_public_url(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Links in e-mails need PUBLIC_URL, and no finding holds a password."""
    monkeypatch.delenv("SMTP_URL", raising=False)
    assert (await check("mail", smtp_url=None)).ok
    async with mailbox() as box:
        url = "https://academy.example"
        assert (await check("mail", smtp_url=box.url, public_url=url)).ok
        missing = await check("mail", smtp_url=box.url)
        assert (missing.ok, missing.result) == (False, "PUBLIC_URL is not set")
    away = await check("mail", smtp_url="smtp://ana:Blue7horse@127.0.0.1:1")
    assert not away.ok
    assert "Blue7horse" not in f"{away}"


async def test_doctor_reports_unreachable_postgres_without_password() -> None:
    finding = await check("postgres", database_url=AWAY)
    assert not finding.ok
    assert finding.result.startswith("postgresql://ana:***@127.0.0.1:1/academy")
    assert "start Postgres, or correct DATABASE_URL" in finding.advice


async def test_doctor_compares_schema_with_release(database_url: str) -> None:
    assert (await check("schema", database_url=database_url)).ok


async def test_doctor_names_service_keys_that_do_not_exist(database_url: str) -> None:
    database = Database(database_url)
    keys = PostgresServiceKeys(database, Clock())
    await keys.add("billing", b"digest", False, NOON, None)
    await keys.add("reports", b"expired", False, NOON, NOON)
    await database.close()
    names = {"a.internal": "billing", "b.internal": "reports", "c.internal": "mail"}
    finding = await check(
        "certificates", database_url=database_url, service_certificates=names
    )
    assert not finding.ok
    assert finding.result == "no valid service key is named mail, reports"
    existing = await check(
        "certificates",
        database_url=database_url,
        service_certificates={"a.internal": "billing"},
    )
    assert existing.ok


async def test_doctor_shows_days_left_of_certificates(tmp_path: Path) -> None:
    """Those of the listeners and of the edge; a fault names the setting."""
    files = Files(tmp_path)
    plaintext = await check("tls")
    assert (plaintext.ok, plaintext.result) == (True, "TLS_CERT is not set: plaintext")
    now = datetime.now(UTC)
    for days, ok in ((40, True), (5, False)):
        end = now + timedelta(days=days, minutes=1)
        files.write(files.issue(not_before=end - timedelta(days=90), not_after=end))
        environment = files.environment("client_ca")
        finding = await check("tls", **environment)
        expected = f"valid until {end:%Y-%m-%d}, {days} days left"
        assert (finding.ok, finding.result) == (ok, expected)
        assert bool(finding.advice) is not ok
    edge = {"client_cert": "cert.pem", "client_key": "key.pem", "server_ca": "ca.pem"}
    paths = {name: str(tmp_path / file) for name, file in edge.items()}
    assert "5 days left" in (await check("edge tls", **paths)).result
    files.write_key(files.issue())
    fault = await check("tls", **environment)
    assert (fault.ok, fault.result) == (False, "TLS_KEY is invalid")
    assert fault.advice.startswith(f"{tmp_path}/key.pem does not match the certificate")


@pytest.mark.parametrize(
    ("name", "url", "displayed"),
    [
        ("database_url", AWAY, "postgresql://ana:***@127.0.0.1:1/academy"),
        ("redis_url", "redis://:hunter2@h:1/0", "redis://:***@h:1/0"),
        ("redis_url", "redis://h?password=hunter2", "redis://h"),
        (
            "redis_url",
            "redis+sentinel://:hunter2@h1:1,h2:2/name?sentinel_password=hunter2",
            "redis+sentinel://:***@h1:1,h2:2/name",
        ),
        ("smtp_url", "smtp://ana:hunter2@h:25", "smtp://ana:***@h:25"),
    ],
)
def test_displayed_settings_mask_passwords(name: str, url: str, displayed: str) -> None:
    assert displayed_settings(load(**{name: url}))[name.upper()] == displayed


QUIET = """\
academy_hashing_refused_total 4
academy_event_loop_lag_seconds_bucket{le="0.25"} 10
academy_event_loop_lag_seconds_bucket{le="+Inf"} 10
"""
FULL = QUIET.replace("refused_total 4", "refused_total 9")
LATE_ONCE = QUIET.replace('le="+Inf"} 10', 'le="+Inf"} 11')
BLOCKED = QUIET.replace('le="+Inf"} 10', 'le="+Inf"} 13')


@pytest.mark.parametrize(
    ("later", "faulty"),
    [
        (QUIET, set()),
        (FULL, {"hashing"}),
        (LATE_ONCE, set()),
        (BLOCKED, {"event loop"}),
    ],
)
async def test_doctor_names_the_fault_of_the_process(
    later: str, faulty: set[str]
) -> None:
    with metrics_listener([QUIET, later]) as address:
        findings = await check_process(address, 0.01)
    assert {finding.check for finding in findings} == {"hashing", "event loop"}
    assert {finding.check for finding in findings if not finding.ok} == faulty
    assert all(finding.ok or finding.advice for finding in findings)


@pytest.mark.parametrize(("responding", "ok"), [(2, True), (1, False)])
async def test_doctor_names_a_worker_that_does_not_respond(
    responding: int, ok: bool
) -> None:
    workers = (
        'academy_workers{state="configured"} 2\n'
        f'academy_workers{{state="responding"}} {responding}\n'
    )
    with metrics_listener([QUIET + workers]) as address:
        findings = await check_process(address, 0.01)
    (finding,) = [finding for finding in findings if finding.check == "workers"]
    assert finding.ok is ok
    assert ok or finding.result == "1 of 2 respond"


async def test_doctor_says_how_to_see_the_process() -> None:
    """Without METRICS_LISTEN nothing is wrong, but two checks are missing."""
    (finding,) = await check_process("")
    assert finding.ok
    assert "METRICS_LISTEN" in finding.advice


async def test_doctor_reports_a_listener_that_does_not_answer() -> None:
    """A blocked event loop accepts connections, because the kernel does."""
    (refused,) = await check_process("127.0.0.1:1")
    assert (refused.check, refused.ok) == ("metrics", False)
    with bound_socket() as silent:
        silent.listen()
        (blocked,) = await check_process(address_of(silent))
    assert (blocked.check, blocked.ok) == ("event loop", False)
    assert "blocked" in blocked.result


def test_doctor_shows_the_settings_of_academy_up(tmp_path: Path) -> None:
    """It runs with DEBUG unless that is set; a server with URLs of its own does not."""
    urls = {"database_url": "postgresql://h/d", "redis_url": "redis://h"}
    state_dir.save_endpoints(tmp_path, urls)
    beside_up = state_dir.as_served(load(state_dir=tmp_path))
    assert (beside_up.debug, beside_up.lame_duck) == (True, timedelta(0))
    assert not state_dir.as_served(load(state_dir=tmp_path, debug=False)).debug
    assert not state_dir.as_served(load(state_dir=tmp_path, **urls)).debug


async def test_doctor_warns_without_an_erasure_log() -> None:
    """The service works without it, so that this is no failure."""
    unset = await check("erasure log")
    assert unset.ok
    assert unset.result.startswith("ERASURE_LOG is not set")
    assert unset.advice.startswith("set ERASURE_LOG")


async def test_log_of_doctor_tells_the_replica_from_the_primary(
    database_url: str,
) -> None:
    with captured_lines(event="store does not respond") as lines:
        finding = await check(
            "replica", database_url=database_url, database_read_url=AWAY
        )
    assert not finding.ok
    assert {line["store"] for line in lines} == {"replica"}


@pytest.mark.parametrize(
    ("content", "ok", "result"),
    [
        (None, True, "is created by the service"),
        (b"7 2026-01-02T12:00:00.000000Z\n", True, "1 users"),
        (b"hello world", False, "line 1 is damaged"),
    ],
)
async def test_doctor_reads_the_erasure_log(
    tmp_path: Path, content: bytes | None, ok: bool, result: str
) -> None:
    """And creates none: it would belong to the wrong account."""
    path = tmp_path / "erasures"
    if content is not None:
        path.write_bytes(content)
    finding = await check("erasure log", erasure_log=path)
    assert (finding.ok, result in finding.result) == (ok, True)
    assert path.exists() is (content is not None)


@pytest.mark.parametrize("name", ["missing/erasures", "."])
async def test_doctor_names_an_erasure_log_that_cannot_be_written(
    tmp_path: Path, name: str
) -> None:
    finding = await check("erasure log", erasure_log=tmp_path / name)
    assert (finding.ok, finding.result) == (
        False,
        f"{tmp_path / name}: cannot be written",
    )


async def test_doctor_looks_for_the_programs_in_pg_bin(tmp_path: Path) -> None:
    missing = await check("backups", pg_bin=tmp_path)
    assert (missing.ok, missing.result) == (False, f"PG_BIN={tmp_path} has no pg_dump")
    assert missing.advice.startswith("set it to the folder that contains it")
    for program in ("pg_dump", "pg_restore"):
        (tmp_path / program).touch(0o755)
    assert (await check("backups", pg_bin=tmp_path)).ok


async def test_doctor_names_the_nodes_of_redis_that_do_not_answer() -> None:
    """And what the nodes are; no finding holds the password."""
    with valkey_cluster(primaries=1) as cluster:
        url = cluster.url.replace("://", "://:hunter2@")
        cluster.primaries[0].client.config_set("requirepass", "hunter2")
        refused = await check("redis", redis_url=cluster.url)
        complete = await check("redis", redis_url=url)
        partial = await check("redis", redis_url=f"{url},127.0.0.1:1")
    away = await check("redis", redis_url="redis+sentinel://127.0.0.1:1/academy")
    hidden = url.replace("hunter2", "***")
    assert not refused.ok
    assert (complete.ok, complete.result) == (
        True,
        f"{hidden}: cluster, all nodes respond (1)",
    )
    assert not partial.ok
    assert partial.result == (
        f"{hidden},127.0.0.1:1: cluster, no valid response from "
        "127.0.0.1:1 (ConnectionError)"
    )
    assert away.result == (
        "redis+sentinel://127.0.0.1:1/academy: primary named by Sentinels, no valid "
        "response from the primary (MasterNotFoundError), "
        "Sentinel 127.0.0.1:1 (ConnectionError)"
    )
