"""The policy for new passwords, and their hashes."""

import asyncio
from collections.abc import Iterator
from time import perf_counter

import pytest
from passlib.hash import bcrypt

from server.domain.credentials.passwords import (
    PasswordHasher,
    PasswordPolicy,
    check_password,
)
from server.domain.errors import InvalidFields, Overloaded
from server.workers.hashing import HashingPool


@pytest.fixture
def hasher() -> Iterator[PasswordHasher]:
    pool = HashingPool(threads=1, queue=2)
    yield PasswordHasher(pool)
    pool.close()


def violated_rules(
    password: str, policy: PasswordPolicy, username: str = "ana", email: str = ""
) -> set[str]:
    try:
        check_password(password, username, policy, email=email)
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
def test_composition_policy(password: str, rules: set[str]) -> None:
    """R9, R10: upper, lower, digit, uncommon, without the name; all are reported."""
    assert violated_rules(password, PasswordPolicy.COMPOSITION) == rules


@pytest.mark.parametrize(
    ("password", "rules"),
    [
        ("correct horse battery", set()),
        ("Blue7horse", {"password.min_len"}),
        ("password", {"password.min_len", "password.common"}),
    ],
)
def test_nist_policy(password: str, rules: set[str]) -> None:
    """R11: 15 characters, no composition rule, the same list."""
    assert violated_rules(password, PasswordPolicy.NIST) == rules


async def test_hash_is_argon2id_with_owasp_parameters(hasher: PasswordHasher) -> None:
    """R12: argon2id, 19 MiB, t=2, p=1."""
    hashed = await hasher.hash("Blue7horse")
    assert hashed.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert (await hasher.verify("Blue7horse", hashed)).matches
    assert not (await hasher.verify("blue7horse", hashed)).matches


async def test_bcrypt_hash_is_upgraded(hasher: PasswordHasher) -> None:
    """R12: an older hash is verified, and a better one comes with the result."""
    verification = await hasher.verify(
        "Blue7horse", bcrypt.using(rounds=4).hash("Blue7horse")
    )
    assert verification.matches
    assert verification.upgraded
    assert verification.upgraded.startswith("$argon2id$")


async def test_missing_hash_never_matches(hasher: PasswordHasher) -> None:
    """R2: without an account a hash is verified too, and never matches."""
    assert not (await hasher.verify("anything", None)).matches


async def test_full_queue_refuses_jobs(hasher: PasswordHasher) -> None:
    """One thread and a queue of two: the fourth concurrent job is refused."""
    outcomes = await asyncio.gather(
        *(hasher.verify("x", None) for _ in range(5)), return_exceptions=True
    )
    refused = [outcome for outcome in outcomes if isinstance(outcome, Overloaded)]
    assert len(refused) == 2
    assert all(error.retry_after for error in refused)
    assert not (await hasher.verify("x", None)).matches


async def test_bcrypt_refuses_more_than_72_bytes(hasher: PasswordHasher) -> None:
    """R9: a longer password never matches, whatever its first bytes are."""
    long = "é" * 36  # 72 bytes
    hashed = bcrypt.using(rounds=4).hash(long)
    assert (await hasher.verify(long, hashed)).matches
    assert not (await hasher.verify(long + "x", hashed)).matches


async def test_batch_is_hashed_in_order(hasher: PasswordHasher) -> None:
    """Each hash belongs to the password at its place."""
    one, two = await hasher.hash_all(["Blue7horse", "Green7horse"])
    assert (await hasher.verify("Blue7horse", one)).matches
    assert (await hasher.verify("Green7horse", two)).matches


@pytest.mark.parametrize(
    ("password", "rules"),
    [
        ("Ana.Lopez7", {"password.email"}),
        ("xxL0pez7yy", {"password.email"}),
        ("Blatam2026", {"password.context"}),
        ("My4cademyX", {"password.context"}),
        ("M4rgarita7", {"password.username"}),
        ("Margarjta7", {"password.similar"}),
        ("7Atiragram", {"password.similar"}),
        ("Blue7horse", set()),
    ],
)
def test_context_words_are_refused(password: str, rules: set[str]) -> None:
    """R10: names of owner and academy, with look-alikes, backwards or similar."""
    email = "ana.lopez@example.com"
    violated = violated_rules(password, PasswordPolicy.COMPOSITION, "margarita", email)
    assert violated == rules


def test_word_comparison_cost_is_bounded() -> None:
    """The compared length is bounded, however long and repetitive the names are."""
    started = perf_counter()
    for _ in range(10):
        violated_rules("aA1" * 42, PasswordPolicy.COMPOSITION, "a" * 255)
    assert perf_counter() - started < 1
