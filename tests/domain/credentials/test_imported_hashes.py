"""Password hashes of other systems: which ones are accepted."""

from typing import Any

import pytest
from passlib.hash import argon2, bcrypt

from server.domain.credentials.imported_hashes import hash_violations, is_bcrypt

ARGON2 = "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$"
DIGEST = "YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXphYmNkZWY"
BCRYPT = "$2b$10$abcdefghijklmnopqrstuuLW6kvK4iHrCPuAcGm6WGq1p7uU6Ir4m"
DEFAULT_MAX_COST = 12


def rule(hashed: str, max_cost: int = DEFAULT_MAX_COST) -> str:
    violations = hash_violations(hashed, "passwordHash", max_cost)
    return "".join(violation.rule for violation in violations)


def test_hashes_of_common_libraries_are_accepted() -> None:
    """Complete hashes of argon2id and of each bcrypt identifier."""
    handler: Any = argon2  # its types are not published
    cheap = handler.using(type="ID", memory_cost=64, time_cost=1, parallelism=2)
    for hashed in (
        cheap.hash("x"),
        bcrypt.using(rounds=4).hash("x"),
        bcrypt.using(rounds=4, ident="2a").hash("x"),
        bcrypt.using(rounds=4, ident="2y").hash("x"),
    ):
        assert rule(hashed) == ""
    assert is_bcrypt(bcrypt.using(rounds=4).hash("x"))
    assert not is_bcrypt(cheap.hash("x"))


@pytest.mark.parametrize(
    ("parameters", "max_cost", "expected"),
    [
        ("m=65536,t=3,p=4", 12, ""),  # the default of argon2-cffi
        ("m=65536,t=3,p=4", 5, "password_hash.cost"),
        ("m=77824,t=2,p=1", 4, ""),
        ("m=77825,t=2,p=1", 4, "password_hash.cost"),
        ("m=19456,t=24,p=1", 12, ""),
        ("m=19456,t=25,p=1", 12, "password_hash.cost"),
        ("m=262144,t=1,p=1", 12, ""),
        ("m=262145,t=1,p=1", 1000, "password_hash.cost"),
        ("m=999999999,t=999999999,p=1", 12, "password_hash.cost"),
        ("m=9999999999,t=1,p=1", 12, "password_hash.format"),
        ("m=19456,t=2,p=5", 12, "password_hash.format"),
        ("m=7,t=2,p=1", 12, "password_hash.format"),
        ("m=0,t=2,p=1", 12, "password_hash.format"),
        ("m=+1,t=2,p=1", 12, "password_hash.format"),
        ("m=\u0661\u0669,t=2,p=1", 12, "password_hash.format"),
        ("t=2,m=19456,p=1", 12, "password_hash.format"),
    ],
)
def test_argon2id_cost_is_memory_times_passes(
    parameters: str, max_cost: int, expected: str
) -> None:
    """The parameters decide; nothing is computed. Memory has a limit of its own."""
    hashed = ARGON2.replace("m=19456,t=2,p=1", parameters) + DIGEST
    assert rule(hashed, max_cost) == expected


@pytest.mark.parametrize(
    ("rounds", "max_cost", "expected"),
    [
        ("12", 12, ""),
        ("13", 12, "password_hash.cost"),
        ("13", 22, ""),
        ("10", 4, ""),
        ("11", 4, "password_hash.cost"),
        ("31", 12, "password_hash.cost"),
        ("03", 12, "password_hash.format"),
        ("32", 12, "password_hash.format"),
        ("1", 12, "password_hash.format"),
        ("\u0661\u0660", 12, "password_hash.format"),
    ],
)
def test_bcrypt_cost_doubles_with_each_round(
    rounds: str, max_cost: int, expected: str
) -> None:
    """12 rounds cost 10.7 times the service's own hash, 10 rounds 2.7 times."""
    assert rule(BCRYPT.replace("$10$", f"${rounds}$"), max_cost) == expected


@pytest.mark.parametrize(
    "hashed",
    [
        "",
        "Blue7horse",
        ARGON2 + DIGEST[:-1],
        ARGON2 + DIGEST + "=",
        ARGON2 + DIGEST + "\n",
        ARGON2 + DIGEST[:-1] + "Z",  # spare bits set
        ARGON2 + "YWJj",
        (ARGON2 + DIGEST).replace("argon2id", "argon2i"),
        (ARGON2 + DIGEST).replace("v=19", "v=16"),
        BCRYPT[:-1],
        BCRYPT + ".",
        BCRYPT.replace("$2b$", "$2x$"),
        BCRYPT[:28] + "v" + BCRYPT[29:],  # spare bits of the salt set
        BCRYPT[:-1] + "n",
        "$6$rounds=5000$salt$hash",
        "$pbkdf2-sha256$29000$abc$def",
        "{SHA}qUqP5cyxm6YcTAhz05Hph5gvu9M=",
    ],
)
def test_other_hashes_are_refused(hashed: str) -> None:
    """Other schemes, and hashes that were altered."""
    assert rule(hashed) == "password_hash.format"
