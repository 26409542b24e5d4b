"""The rules of sessions, over stores in memory."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest

from server.domain.accounts.users import Users
from server.domain.auth.authentication import Authentication, Tokens
from server.domain.auth.log_ins import LogIns
from server.domain.credentials.passwords import PasswordHasher, PasswordPolicy
from server.domain.credentials.revocations import Revocations
from server.domain.credentials.secret_key import SecretKey
from server.domain.credentials.service_keys import ServiceKeys
from server.domain.credentials.sessions import RefreshLimits, RefreshTokens
from server.domain.credentials.stores import Account
from server.domain.credentials.tokens import AccessTokens, KeyRing, KeyState, SigningKey
from server.domain.errors import InvalidCredentials, RefreshTokenInvalid, TokenInvalid
from server.domain.factors.challenges import Challenges, Client
from server.domain.limits import AccountLimit, SlidingWindows, Window
from server.domain.outbox.entries import EventType, NewEntry
from server.domain.paging import PageTokens
from server.workers.hashing import HashingPool
from tests.fakes import (
    Clock,
    FakeChallenges,
    FakeEmailOutbox,
    FakeServiceKeys,
    FakeSessions,
    FakeUsers,
)

SECRET = SecretKey("s" * 32)
PER_MINUTE = Window(5, timedelta(seconds=60))


def limits_from(address: str) -> list[AccountLimit]:
    """Return the limits that the chain hands over for a client address."""
    return [AccountLimit(PER_MINUTE, address)]


@dataclass(frozen=True, slots=True)
class AuthHarness:
    clock: Clock
    accounts: FakeUsers
    users: Users
    auth: Authentication
    email_outbox: FakeEmailOutbox

    async def log_in(
        self, identifier: str, password: str = "Blue7horse", address: str = "a"
    ) -> Tokens:
        log_ins = LogIns(self.auth, Challenges(FakeChallenges(), self.clock))
        client = Client(address, "test")
        outcome = await log_ins.with_password(
            identifier, password, client, limits_from(address)
        )
        assert isinstance(outcome, Tokens)
        return outcome


@pytest.fixture(scope="module")
def hasher() -> Iterator[PasswordHasher]:
    pool = HashingPool()
    yield PasswordHasher(pool)
    pool.close()


@pytest.fixture
def harness(hasher: PasswordHasher) -> AuthHarness:
    clock, accounts, ring = Clock(), FakeUsers(), KeyRing()
    email_outbox = FakeEmailOutbox()
    known = Revocations(clock)
    ring.replace([SigningKey.generate(KeyState.ACTIVE)])
    limits = RefreshLimits(timedelta(30), timedelta(90), timedelta(seconds=10))
    auth = Authentication(
        accounts=accounts,
        sessions=FakeSessions(accounts, known),
        hasher=hasher,
        access=AccessTokens("iss", "aud", ring, clock),
        refresh=RefreshTokens(SECRET.mac("refresh"), limits),
        revocations=known,
        service_keys=ServiceKeys(FakeServiceKeys(), clock),
        attempts=SlidingWindows(clock),
        email_outbox=email_outbox,
        policy=PasswordPolicy.COMPOSITION,
        clock=clock,
    )
    page_tokens = PageTokens(SECRET.mac("pages"))
    users = Users(
        accounts,
        hasher,
        page_tokens,
        PasswordPolicy.COMPOSITION,
        timedelta(days=30),
        clock,
    )
    return AuthHarness(clock, accounts, users, auth, email_outbox)


async def signed_up(harness: AuthHarness) -> int:
    user = await harness.users.register("Ana@Example.com", "Ana", "Blue7horse")
    return user.id


async def refused(
    harness: AuthHarness, identifier: str, password: str, address: str = "a"
) -> str:
    with pytest.raises(InvalidCredentials) as caught:
        await harness.log_in(identifier, password, address)
    return f"{caught.value!r} {caught.value.metadata} {caught.value.reason}"


@pytest.mark.parametrize(
    "identifier", ["ana", "ANA", "ana@example.com", "ANA@EXAMPLE.COM"]
)
async def test_log_in_takes_name_or_email_in_any_case(
    harness: AuthHarness, identifier: str
) -> None:
    """Usernames and e-mail addresses identify an account without regard to case."""
    user_id = await signed_up(harness)
    tokens = await harness.log_in(identifier)
    assert harness.auth.verify(tokens.access_token).user_id == user_id
    assert tokens.expires_in == timedelta(minutes=15)


async def test_log_in_failures_have_one_answer(harness: AuthHarness) -> None:
    """R1: unknown, wrong and disabled are indistinguishable."""
    user_id = await signed_up(harness)
    answers = {
        await refused(harness, "unknown", "Blue7horse"),
        await refused(harness, "ana", "Wrong7horse"),
    }
    harness.accounts.disable(user_id)
    answers.add(await refused(harness, "ana", "Blue7horse"))
    assert len(answers) == 1


async def test_account_limit_holds_for_every_spelling(harness: AuthHarness) -> None:
    """R5: the sixth try of a minute fails, whatever the password and the spelling."""
    await signed_up(harness)
    for identifier in ("ana", "ANA", "ana@example.com", "Ana@Example.com", "aNa"):
        await refused(harness, identifier, "Wrong7horse")
    await refused(harness, "ana", "Blue7horse")
    harness.clock.advance(60)
    assert await harness.log_in("ana")


async def test_account_limit_is_shared_by_address_and_limit(
    harness: AuthHarness,
) -> None:
    """Another address has a count of its own; without a limit nothing is counted."""
    await signed_up(harness)
    for _ in range(5):
        await refused(harness, "ana", "Wrong7horse")
    assert await harness.log_in("ana", address="b")
    assert await harness.auth.authenticate("ana", "Blue7horse", [])
    await refused(harness, "ana", "Blue7horse")


async def test_password_that_was_not_verified_is_no_failure(
    harness: AuthHarness,
) -> None:
    """Right passwords beyond the limit do not warn the owner of failed log-ins."""
    await signed_up(harness)
    for _ in range(5):
        assert await harness.log_in("ana")
    for _ in range(20):
        await refused(harness, "ana", "Blue7horse")
    assert not harness.email_outbox.entries


async def test_failures_from_other_addresses_do_not_lock_out_the_owner(
    harness: AuthHarness,
) -> None:
    """R6: failures from 200 other addresses leave the owner's own count untouched.

    The owner is warned once a day; an unknown account costs the same row.
    """
    user_id = await signed_up(harness)
    for number in range(200):
        await refused(harness, "ana", "", f"198.51.100.{number}")
    assert await harness.log_in("ana", address="192.0.2.1")
    assert harness.email_outbox.entries == [NewEntry(EventType.FAILED_LOG_INS, user_id)]
    for number in range(10):
        await refused(harness, "unknown", "", f"198.51.100.{number}")
    assert harness.email_outbox.entries[1:] == [NewEntry(EventType.FAILED_LOG_INS)]
    harness.clock.advance(24 * 3600)
    for number in range(10):
        await refused(harness, "ana", "", f"198.51.100.{number}")
    assert len(harness.email_outbox.entries) == 3


async def test_few_failures_send_no_warning(harness: AuthHarness) -> None:
    """Nine failures within an hour are no reason for an e-mail."""
    await signed_up(harness)
    for number in range(9):
        await refused(harness, "ana", "", f"198.51.100.{number}")
    harness.clock.advance(3600)
    await refused(harness, "ana", "", "198.51.100.1")
    assert not harness.email_outbox.entries


async def test_log_out_ends_both_tokens(harness: AuthHarness) -> None:
    """R22: the access token is refused by the very next call."""
    await signed_up(harness)
    tokens = await harness.log_in("ana")
    await harness.auth.log_out(tokens.session_id)
    with pytest.raises(TokenInvalid):
        harness.auth.verify(tokens.access_token)
    with pytest.raises(RefreshTokenInvalid):
        await harness.auth.refresh_tokens(tokens.refresh_token)


async def test_refresh_reuse_revokes_access_tokens(harness: AuthHarness) -> None:
    """R18: the access tokens of a revoked session are refused."""
    await signed_up(harness)
    first = await harness.log_in("ana")
    second = await harness.auth.refresh_tokens(first.refresh_token)
    third = await harness.auth.refresh_tokens(second.refresh_token)
    with pytest.raises(RefreshTokenInvalid):
        await harness.auth.refresh_tokens(first.refresh_token)
    for tokens in (first, second, third):
        with pytest.raises(TokenInvalid):
            harness.auth.verify(tokens.access_token)


async def test_refresh_of_disabled_account_is_refused(harness: AuthHarness) -> None:
    """R22: disabling an account ends its refreshes."""
    user_id = await signed_up(harness)
    tokens = await harness.log_in("ana")
    harness.accounts.disable(user_id)
    with pytest.raises(RefreshTokenInvalid):
        await harness.auth.refresh_tokens(tokens.refresh_token)


@dataclass(slots=True)
class ChangingUsers(FakeUsers):
    """Accounts that change after each of the next `changes` look-ups."""

    changes: int = 0

    async def account(self, identifier: str) -> Account | None:
        account = await FakeUsers.account(self, identifier)
        if account and self.changes:
            self.changes -= 1
            before = self.users[account.user_id]
            self.users[account.user_id] = replace(before, version=before.version + 1)
        return account


@pytest.mark.parametrize(("changes", "succeeds"), [(0, True), (1, True), (9, False)])
async def test_log_in_retries_when_the_account_changes(
    harness: AuthHarness, changes: int, succeeds: bool
) -> None:
    """R13, R22: a password is verified again if it may have changed meanwhile."""
    await signed_up(harness)
    busy = ChangingUsers(users=harness.accounts.users, hashes=harness.accounts.hashes)
    busy.changes = changes
    sessions = FakeSessions(busy, harness.auth.revocations)
    harness = replace(
        harness, auth=replace(harness.auth, accounts=busy, sessions=sessions)
    )
    if succeeds:
        assert await harness.log_in("ana")
    else:
        await refused(harness, "ana", "Blue7horse")
    assert len(sessions.sessions) == succeeds
