"""Requests for an e-mail must not reveal who has an account."""

from typing import Any, cast

import pytest

from server.domain.auth.authentication import Authentication
from server.domain.auth.recovery import Recovery
from server.domain.credentials.passwords import PasswordPolicy
from server.domain.outbox.entries import EventType, NewEntry
from tests.fakes import Clock, FakeEmailOutbox


class Unused:
    """A dependency that must not be used."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was used")


@pytest.mark.parametrize("identifier", ["Ana", "ana@example.com", "ANA@Example.com"])
async def test_password_reset_looks_up_no_account(identifier: str) -> None:
    """R3: one row, the same for everyone; no account is read, so none takes longer."""
    email_outbox, unused = FakeEmailOutbox(), cast(Any, Unused())
    rules = Authentication(
        accounts=unused,
        sessions=unused,
        hasher=unused,
        access=unused,
        refresh=unused,
        revocations=unused,
        service_keys=unused,
        attempts=unused,
        email_outbox=email_outbox,
        policy=PasswordPolicy.COMPOSITION,
        clock=Clock(),
    )
    await Recovery(rules, unused).request_password_reset(identifier)
    expected = NewEntry(EventType.PASSWORD_RESET, address=identifier.lower())
    assert email_outbox.entries == [expected]
