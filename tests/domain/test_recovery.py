"""Asking for a mail must tell nobody who has an account."""

from typing import Any, cast

import pytest

from server.domain.auth import Authentication
from server.domain.credentials.passwords import PasswordPolicy
from server.domain.outbox.entries import EventType, NewEntry
from server.domain.recovery import Recovery
from tests.fakes import Clock, FakeMailing


class Untouched:
    """Something that nobody may use."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked for")


@pytest.mark.parametrize("identifier", ["Ana", "ana@example.com", "ANA@Example.com"])
async def test_nobody_is_looked_up(identifier: str) -> None:
    """R3: one row, the same for everybody; no account is read, so none takes longer."""
    mailing, untouched = FakeMailing(), cast(Any, Untouched())
    rules = Authentication(
        accounts=untouched,
        sessions=untouched,
        hasher=untouched,
        access=untouched,
        refresh=untouched,
        revocations=untouched,
        service_keys=untouched,
        attempts=untouched,
        mailing=mailing,
        policy=PasswordPolicy.COMPOSITION,
        clock=Clock(),
    )
    await Recovery(rules, untouched).request_password_reset(identifier)
    expected = NewEntry(EventType.PASSWORD_RESET, address=identifier.lower())
    assert mailing.entries == [expected]
