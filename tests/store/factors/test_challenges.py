"""Challenges: one suite on the store in memory and on Postgres."""

import asyncio
from datetime import timedelta

import pytest

from server.domain.factors.challenges import (
    LIFETIME,
    MAX_ATTEMPTS,
    ChallengeKind,
    Challenges,
    ChallengeStore,
    Client,
)
from server.store.connections.connect import Database
from server.store.factors.challenges import PostgresChallenges
from tests.fakes import Clock, FakeChallenges
from tests.store.conftest import StoresUnderTest
from tests.store.test_users import new

KIND = ChallengeKind.LOG_IN
HOME = Client("192.0.2.7", "Firefox")


@pytest.fixture(params=["fake", "real"])
def store(request: pytest.FixtureRequest) -> ChallengeStore:
    if request.param == "fake":
        return FakeChallenges()
    database: Database = request.getfixturevalue("database")
    return PostgresChallenges(database)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def challenges(store: ChallengeStore, clock: Clock) -> Challenges:
    return Challenges(store, clock)


async def test_attempt_returns_what_was_begun(
    real_stores: StoresUnderTest, database: Database, clock: Clock
) -> None:
    challenges = Challenges(PostgresChallenges(database), clock)
    user = await real_stores.users.add(new("ana"))
    data = {"amr": ["pwd"], "nested": {"n": 1}}
    token = await challenges.begin(KIND, HOME, user_id=user.id, version=3, data=data)
    challenge = await challenges.attempt(KIND, token, HOME)
    assert challenge
    assert (challenge.user_id, challenge.version) == (user.id, 3)
    assert (challenge.network, challenge.device) == ("192.0.2.0/24", "Firefox")
    assert (challenge.kind, challenge.data) == (KIND, data)
    assert challenge.attempts == 1
    assert challenge.expires_at - challenge.created_at == LIFETIME


async def test_consume_succeeds_once(challenges: Challenges) -> None:
    token = await challenges.begin(KIND)
    challenge = await challenges.attempt(KIND, token)
    assert challenge
    results = await asyncio.gather(*(challenges.consume(challenge) for _ in range(5)))
    assert sorted(results) == [False, False, False, False, True]
    assert await challenges.attempt(KIND, token) is None


async def test_attempts_at_the_same_time_are_all_counted(
    challenges: Challenges,
) -> None:
    token = await challenges.begin(KIND)
    attempts = await asyncio.gather(
        *(challenges.attempt(KIND, token) for _ in range(MAX_ATTEMPTS + 5))
    )
    assert sum(attempt is not None for attempt in attempts) == MAX_ATTEMPTS


async def test_expired_challenge_allows_no_attempt(
    challenges: Challenges, clock: Clock
) -> None:
    token = await challenges.begin(KIND, lifetime=timedelta(minutes=1))
    clock.advance(59)
    assert await challenges.attempt(KIND, token)
    clock.advance(1)
    assert await challenges.attempt(KIND, token) is None


async def test_challenge_of_another_kind_is_not_accepted(
    challenges: Challenges,
) -> None:
    token = await challenges.begin(KIND)
    assert await challenges.attempt(ChallengeKind.LOGIN_CODE, token) is None


@pytest.mark.parametrize("change", ["", "!", "AAAA", "A" * 64, "A" * 1000])
async def test_token_that_was_not_issued_is_not_accepted(
    challenges: Challenges, change: str
) -> None:
    await challenges.begin(KIND)
    assert await challenges.attempt(KIND, change) is None


async def test_secret_of_another_challenge_is_not_accepted(
    challenges: Challenges,
) -> None:
    """The id of one challenge with the secret of another one."""
    one, other = await challenges.begin(KIND), await challenges.begin(KIND)
    assert await challenges.attempt(KIND, one[:20] + other[20:]) is None


@pytest.mark.parametrize(
    ("client", "accepted"),
    [
        (Client("192.0.2.200", "Firefox"), True),  # the same /24
        (Client("192.0.3.7", "Firefox"), False),
        (Client("192.0.2.7", "curl"), False),
        (None, False),
    ],
)
async def test_challenge_belongs_to_its_client(
    challenges: Challenges, client: Client | None, accepted: bool
) -> None:
    token = await challenges.begin(KIND, HOME)
    assert (await challenges.attempt(KIND, token, client) is not None) == accepted


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.0/24"),
        ("::ffff:192.0.2.7", "192.0.2.0/24"),
        ("2001:db8:1:2::3", "2001:db8:1::/48"),
        ("unix:", "unix:"),
    ],
)
def test_network_of_a_client(address: str, network: str) -> None:
    assert Client(address, "").network == network
