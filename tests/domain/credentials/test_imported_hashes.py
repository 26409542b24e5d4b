"""Hashes made elsewhere: which are taken."""

from typing import Any

import pytest
from passlib.hash import argon2, bcrypt

from server.domain.credentials.imported_hashes import hash_faults, is_bcrypt

ARGON2 = "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$"
DIGEST = "YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXphYmNkZWY"
BCRYPT = "$2b$10$abcdefghijklmnopqrstuuLW6kvK4iHrCPuAcGm6WGq1p7uU6Ir4m"


def rule(hashed: str) -> str:
    return "".join(fault.rule for fault in hash_faults(hashed, "passwordHash"))


def test_what_libraries_make_is_taken() -> None:
    """Whole hashes of argon2id and bcrypt, at what they usually cost."""
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
    ("parameters", "expected"),
    [
        ("m=77824,t=2,p=1", ""),
        ("m=77825,t=2,p=1", "password_hash.cost"),
        ("m=19456,t=8,p=4", ""),
        ("m=19456,t=9,p=1", "password_hash.cost"),
        ("m=999999999,t=999999999,p=1", "password_hash.cost"),
        ("m=9999999999,t=1,p=1", "password_hash.format"),
        ("m=19456,t=2,p=5", "password_hash.format"),
        ("m=7,t=2,p=1", "password_hash.format"),
        ("m=0,t=2,p=1", "password_hash.format"),
        ("m=+1,t=2,p=1", "password_hash.format"),
        ("t=2,m=19456,p=1", "password_hash.format"),
    ],
)
def test_argon2id_costs_memory_times_passes(parameters: str, expected: str) -> None:
    """At most four times ours, by the parameters; nothing is computed to find out."""
    hashed = ARGON2.replace("m=19456,t=2,p=1", parameters) + DIGEST
    assert rule(hashed) == expected


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [
        ("10", ""),
        ("11", "password_hash.cost"),
        ("31", "password_hash.cost"),
        ("03", "password_hash.format"),
        ("32", "password_hash.format"),
        ("1", "password_hash.format"),
    ],
)
def test_bcrypt_doubles_with_each_round(rounds: str, expected: str) -> None:
    """12 rounds take 10.7 times as long as ours, 10 rounds 2.7 times."""
    assert rule(BCRYPT.replace("$10$", f"${rounds}$")) == expected


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
def test_anything_else_is_refused(hashed: str) -> None:
    """Other schemes, and hashes that something was done to."""
    assert rule(hashed) == "password_hash.format"
