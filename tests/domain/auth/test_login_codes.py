"""Mailed codes must not reveal who has an account."""

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from server.domain.auth.authentication import Authentication
from server.domain.auth.log_ins import LogIns
from server.domain.auth.login_codes import LoginCodes
from server.domain.credentials.passwords import PasswordPolicy
from server.domain.credentials.secret_key import Mac
from server.domain.errors import InvalidCredentials
from server.domain.factors.challenges import Challenges, Client
from server.domain.factors.login_codes import LoginCodeMacs
from server.domain.outbox.entries import EventType
from tests.domain.auth.test_recovery import Unused
from tests.fakes import Clock, FakeChallenges, FakeEmailOutbox


@dataclass
class NoAccounts:
    """No accounts; `reads` counts the look-ups."""

    reads: int = 0

    async def account_by_id(self, user_id: int) -> None:
        self.reads += 1


@dataclass
class Setup:
    """The rules of mailed codes on fakes."""

    email_outbox: FakeEmailOutbox = field(default_factory=FakeEmailOutbox)
    accounts: NoAccounts = field(default_factory=NoAccounts)

    @property
    def login_codes(self) -> LoginCodes:
        unused, clock = cast(Any, Unused()), Clock()
        rules = Authentication(
            accounts=cast(Any, self.accounts),
            sessions=unused,
            hasher=unused,
            access=unused,
            refresh=unused,
            revocations=unused,
            service_keys=unused,
            attempts=unused,
            email_outbox=self.email_outbox,
            policy=PasswordPolicy.COMPOSITION,
            clock=clock,
        )
        log_ins = LogIns(rules, Challenges(FakeChallenges(), clock))
        return LoginCodes(log_ins, LoginCodeMacs(Mac((b"k" * 32,))))


async def test_request_looks_up_no_account() -> None:
    """R3: the same rows for everyone, so that none takes longer."""
    setup = Setup()
    requested = await setup.login_codes.request("ANA@Example.com")
    (entry,) = setup.email_outbox.entries
    assert (entry.kind, entry.address) == (EventType.LOGIN_CODE, "ana@example.com")
    assert requested.nonce not in str(entry)
    assert setup.accounts.reads == 0


async def test_code_for_no_account_takes_the_steps_of_a_wrong_one() -> None:
    setup = Setup()
    login_codes = setup.login_codes
    requested = await login_codes.request("nobody")
    with pytest.raises(InvalidCredentials):
        await login_codes.log_in(requested.nonce, "00000000", Client("192.0.2.7", ""))
    assert setup.accounts.reads == 1
