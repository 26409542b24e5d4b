"""The rules of logging in, over stores in memory."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest

from server.domain.accounts.users import Users
from server.domain.auth import Account, Authentication
from server.domain.credentials.passwords import PasswordHasher, PasswordPolicy
from server.domain.credentials.revocations import Revocations
from server.domain.credentials.secret_key import SecretKey
from server.domain.credentials.service_keys import ServiceKeys
from server.domain.credentials.sessions import RefreshLimits, RefreshTokens
from server.domain.credentials.tokens import AccessTokens, KeyRing, KeyState, SigningKey
from server.domain.errors import InvalidCredentials, RefreshTokenInvalid, TokenInvalid
from server.domain.limits import SlidingWindows
from server.domain.outbox.entries import EventType, NewEntry
from server.domain.paging import PageTokens
from server.workers.hashing import HashingPool
from tests.fakes import Clock, FakeMailing, FakeServiceKeys, FakeSessions, FakeUsers

SECRET = SecretKey("s" * 32)


@dataclass(frozen=True, slots=True)
class World:
    clock: Clock
    accounts: FakeUsers
    users: Users
    auth: Authentication
    mailing: FakeMailing


@pytest.fixture(scope="module")
def hasher() -> Iterator[PasswordHasher]:
    pool = HashingPool()
    yield PasswordHasher(pool)
    pool.close()


@pytest.fixture
def world(hasher: PasswordHasher) -> World:
    clock, accounts, ring = Clock(), FakeUsers(), KeyRing()
    mailing = FakeMailing()
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
        mailing=mailing,
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
    return World(clock, accounts, users, auth, mailing)


async def signed_up(world: World) -> int:
    user = await world.users.register("Ana@Example.com", "Ana", "Blue7horse")
    return user.id


async def refused(
    world: World, identifier: str, password: str, address: str = "a"
) -> str:
    with pytest.raises(InvalidCredentials) as caught:
        await world.auth.log_in(identifier, password, address, "test")
    return f"{caught.value!r} {caught.value.metadata} {caught.value.reason}"


@pytest.mark.parametrize(
    "identifier", ["ana", "ANA", "ana@example.com", "ANA@EXAMPLE.COM"]
)
async def test_by_name_or_address_in_any_case(world: World, identifier: str) -> None:
    user_id = await signed_up(world)
    tokens = await world.auth.log_in(identifier, "Blue7horse", "a", "test")
    assert world.auth.verify(tokens.access_token).user_id == user_id
    assert tokens.expires_in == timedelta(minutes=15)


async def test_one_answer_to_every_failure(world: World) -> None:
    """R1: unknown, wrong and disabled cannot be told apart."""
    user_id = await signed_up(world)
    answers = {
        await refused(world, "nobody", "Blue7horse"),
        await refused(world, "ana", "Wrong7horse"),
    }
    world.accounts.disable(user_id)
    answers.add(await refused(world, "ana", "Blue7horse"))
    assert len(answers) == 1


async def test_five_verified_a_minute_whatever_the_spelling(world: World) -> None:
    """R5: the sixth try of a minute fails, right password or not; then it is over."""
    await signed_up(world)
    for identifier in ("ana", "ANA", "ana@example.com", "Ana@Example.com", "aNa"):
        await refused(world, identifier, "Wrong7horse")
    await refused(world, "ana", "Blue7horse")
    world.clock.advance(60)
    assert await world.auth.log_in("ana", "Blue7horse", "a", "test")


async def test_an_attacker_elsewhere_locks_nobody_out(world: World) -> None:
    """R6: failures from 200 other addresses leave the owner's own untouched.

    The owner is told once a day; who does not exist costs the same row.
    """
    user_id = await signed_up(world)
    for number in range(200):
        await refused(world, "ana", "", f"198.51.100.{number}")
    assert await world.auth.log_in("ana", "Blue7horse", "192.0.2.1", "test")
    assert world.mailing.entries == [NewEntry(EventType.FAILED_LOG_INS, user_id)]
    for number in range(10):
        await refused(world, "nobody", "", f"198.51.100.{number}")
    assert world.mailing.entries[1:] == [NewEntry(EventType.FAILED_LOG_INS)]
    world.clock.advance(24 * 3600)
    for number in range(10):
        await refused(world, "ana", "", f"198.51.100.{number}")
    assert len(world.mailing.entries) == 3


async def test_a_few_failures_are_nothing_to_tell(world: World) -> None:
    await signed_up(world)
    for number in range(9):
        await refused(world, "ana", "", f"198.51.100.{number}")
    world.clock.advance(3600)
    await refused(world, "ana", "", "198.51.100.1")
    assert not world.mailing.entries


async def test_logging_out_ends_both_tokens(world: World) -> None:
    """R22: the access token is refused by the very next call."""
    await signed_up(world)
    tokens = await world.auth.log_in("ana", "Blue7horse", "a", "test")
    await world.auth.log_out(tokens.session_id)
    with pytest.raises(TokenInvalid):
        world.auth.verify(tokens.access_token)
    with pytest.raises(RefreshTokenInvalid):
        await world.auth.refresh_tokens(tokens.refresh_token)


async def test_reuse_ends_access_tokens_too(world: World) -> None:
    """R18: with the session its access tokens die."""
    await signed_up(world)
    first = await world.auth.log_in("ana", "Blue7horse", "a", "test")
    second = await world.auth.refresh_tokens(first.refresh_token)
    third = await world.auth.refresh_tokens(second.refresh_token)
    with pytest.raises(RefreshTokenInvalid):
        await world.auth.refresh_tokens(first.refresh_token)
    for tokens in (first, second, third):
        with pytest.raises(TokenInvalid):
            world.auth.verify(tokens.access_token)


async def test_a_disabled_account_refreshes_nothing(world: World) -> None:
    user_id = await signed_up(world)
    tokens = await world.auth.log_in("ana", "Blue7horse", "a", "test")
    world.accounts.disable(user_id)
    with pytest.raises(RefreshTokenInvalid):
        await world.auth.refresh_tokens(tokens.refresh_token)


@dataclass(slots=True)
class Busy(FakeUsers):
    """Accounts that change as soon as one looks away, so many times."""

    changes: int = 0

    async def account(self, identifier: str) -> Account | None:
        found = await FakeUsers.account(self, identifier)
        if found and self.changes:
            self.changes -= 1
            before = self.users[found.user_id]
            self.users[found.user_id] = replace(before, version=before.version + 1)
        return found


@pytest.mark.parametrize(("changes", "gets_in"), [(0, True), (1, True), (9, False)])
async def test_an_account_that_changes_meanwhile(
    world: World, changes: int, gets_in: bool
) -> None:
    """R13, R22: a password is verified anew where it may be another by now."""
    await signed_up(world)
    busy = Busy(users=world.accounts.users, hashes=world.accounts.hashes)
    busy.changes = changes
    sessions = FakeSessions(busy, world.auth.revocations)
    world = replace(world, auth=replace(world.auth, accounts=busy, sessions=sessions))
    if gets_in:
        assert await world.auth.log_in("ana", "Blue7horse", "a", "test")
    else:
        await refused(world, "ana", "Blue7horse")
    assert len(sessions.sessions) == gets_in
