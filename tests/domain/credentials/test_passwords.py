"""What makes a password good enough, and how it is kept."""

import asyncio
from collections.abc import Iterator

import pytest
from passlib.hash import bcrypt

from server.domain.credentials.passwords import (
    PasswordHasher,
    PasswordPolicy,
    check_password,
)
from server.domain.errors import InvalidFields, Overloaded


@pytest.fixture
def hasher() -> Iterator[PasswordHasher]:
    hasher = PasswordHasher(threads=1, queue=2)
    yield hasher
    hasher.close()


def broken(password: str, policy: PasswordPolicy, username: str = "ana") -> set[str]:
    try:
        check_password(password, username, policy)
    except InvalidFields as error:
        return {violation.rule for violation in error.violations}
    return set()


@pytest.mark.parametrize(
    ("password", "rules"),
    [
        ("Blue7horse", set()),
        ("blue7horse", {"password.upper"}),
        ("BLUE7HORSE", {"password.lower"}),
        ("Bluehorses", {"password.digit"}),
        ("--------", {"password.upper", "password.lower", "password.digit"}),
        ("Password1", {"password.common"}),
        ("xxANA7yyy", {"password.username"}),
        ("Ünï7cödé", set()),
    ],
)
def test_composition(password: str, rules: set[str]) -> None:
    """R9, R10: upper, lower, digit, uncommon, without the name; all are told."""
    assert broken(password, PasswordPolicy.COMPOSITION) == rules


@pytest.mark.parametrize(
    ("password", "rules"),
    [
        ("correct horse battery", set()),
        ("Blue7horse", {"password.min_len"}),
        ("password", {"password.min_len", "password.common"}),
    ],
)
def test_nist(password: str, rules: set[str]) -> None:
    """R11: 15 characters, no composition rule, the same list."""
    assert broken(password, PasswordPolicy.NIST) == rules


async def test_hash_is_argon2id_by_owasp(hasher: PasswordHasher) -> None:
    """R12: argon2id, 19 MiB, t=2, p=1."""
    hashed = await hasher.hash("Blue7horse")
    assert hashed.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert (await hasher.verify("Blue7horse", hashed)).matches
    assert not (await hasher.verify("blue7horse", hashed)).matches


async def test_bcrypt_is_upgraded(hasher: PasswordHasher) -> None:
    """R12: an older hash still serves, and a better one comes with the verdict."""
    verdict = await hasher.verify(
        "Blue7horse", bcrypt.using(rounds=4).hash("Blue7horse")
    )
    assert verdict.matches
    assert verdict.upgraded
    assert verdict.upgraded.startswith("$argon2id$")


async def test_nobody_never_matches(hasher: PasswordHasher) -> None:
    """Without an account the work is done all the same, and never succeeds."""
    assert not (await hasher.verify("anything", None)).matches


async def test_a_full_queue_refuses(hasher: PasswordHasher) -> None:
    """One thread and a queue of two: the fourth at once is told to come again."""
    outcomes = await asyncio.gather(
        *(hasher.verify("x", None) for _ in range(5)), return_exceptions=True
    )
    refused = [outcome for outcome in outcomes if isinstance(outcome, Overloaded)]
    assert len(refused) == 2
    assert all(error.retry_after for error in refused)
    assert not (await hasher.verify("x", None)).matches


async def test_a_cancelled_caller_frees_its_place_when_its_hash_ends(
    hasher: PasswordHasher,
) -> None:
    """Cancelled calls neither leak places nor let the pool take more than it can."""
    tasks = [asyncio.create_task(hasher.verify("x", None)) for _ in range(3)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    with pytest.raises(Overloaded):
        await hasher.verify("x", None)
    await hasher.idle()
    assert not (await hasher.verify("x", None)).matches
