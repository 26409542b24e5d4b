"""The checks of `academy doctor`: what each finds, and what it advises."""

import pytest

from server.cli.checks import Finding, displayed_settings, run_checks
from server.config import load
from tests.mailbox import mailbox

AWAY = "postgresql://ana:hunter2@127.0.0.1:1/academy"


async def check(name: str, **settings: str | None) -> Finding:
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
    assert "start it, or correct DATABASE_URL" in finding.advice


async def test_doctor_compares_schema_with_release(database_url: str) -> None:
    assert (await check("schema", database_url=database_url)).ok


@pytest.mark.parametrize(
    ("name", "url", "displayed"),
    [
        ("database_url", AWAY, "postgresql://ana:***@127.0.0.1:1/academy"),
        ("redis_url", "redis://:hunter2@h:1/0", "redis://:***@h:1/0"),
        ("redis_url", "redis://h?password=hunter2", "redis://h"),
        ("smtp_url", "smtp://ana:hunter2@h:25", "smtp://ana:***@h:25"),
    ],
)
def test_displayed_settings_mask_passwords(name: str, url: str, displayed: str) -> None:
    assert displayed_settings(load(**{name: url}))[name.upper()] == displayed
