"""`academy doctor` on mail: the other checks are seen where it is run."""

import pytest

from server.config import load
from server.doctor import Finding, findings
from tests.mailbox import mailbox


async def mail_of(smtp_url: str | None, public_url: str = "") -> Finding:
    settings = load(smtp_url=smtp_url, public_url=public_url)
    (found,) = [f for f in await findings(settings) if f.check == "mail"]
    return found


async def test_mail(monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs a server that answers, and a place for links to lead to."""
    monkeypatch.delenv("SMTP_URL", raising=False)
    assert (await mail_of(None)).ok
    async with mailbox() as box:
        assert (await mail_of(box.url, "https://academy.example")).ok
        missing = await mail_of(box.url)
        assert (missing.ok, missing.found) == (False, "no PUBLIC_URL")
    away = await mail_of("smtp://ana:Blue7horse@127.0.0.1:1")
    assert not away.ok
    assert "Blue7horse" not in f"{away}"
