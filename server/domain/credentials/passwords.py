"""Passwords: which are good enough, and hashing them without stopping the loop.

Rules: the conventions' composition rule by default; NIST SP 800-63B-4 3.1.1.2
(15 or more, no composition) by setting, because ASVS 6.2.5 forbids composition
rules. Both refuse common passwords and such as hold, or are like, the names of the
owner or the academy. The list is zxcvbn's (MIT), 30,000 passwords by frequency.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from secrets import token_urlsafe
from typing import Protocol, TypeVar

from passlib.context import CryptContext
from zxcvbn.frequency_lists import FREQUENCY_LISTS

from server.domain.credentials.context_words import (
    ACADEMY,
    email_words,
    holds,
    is_like,
)
from server.domain.credentials.imported_hashes import MEMORY_KIB, PASSES, is_bcrypt
from server.domain.errors import InvalidFields, Violation

COMMON = frozenset(word for word in FREQUENCY_LISTS["passwords"] if len(word) >= 8)
BCRYPT_READS = 72  # bytes of a password; bcrypt leaves out the rest
Result = TypeVar("Result")


class PasswordPolicy(StrEnum):
    """Which rules a new password is held to."""

    COMPOSITION = "composition"
    NIST = "nist"


def check_password(
    password: str,
    username: str,
    policy: PasswordPolicy,
    field: str = "password",
    *,
    email: str = "",
) -> None:
    """Raise InvalidFields with every rule that a new password breaks."""
    broken = [
        Violation(field, description, f"password.{rule}")
        for rule, description, kept in (*_rules(policy), *_words(username, email))
        if not kept(password)
    ]
    if broken:
        raise InvalidFields(broken)


Rule = tuple[str, str, Callable[[str], bool]]


def _rules(policy: PasswordPolicy) -> tuple[Rule, ...]:
    if policy is PasswordPolicy.NIST:
        return (("min_len", "must be at least 15 characters", lambda p: len(p) >= 15),)
    return (
        ("upper", "must hold an upper-case letter", _has(str.isupper)),
        ("lower", "must hold a lower-case letter", _has(str.islower)),
        ("digit", "must hold a digit", _has(str.isdigit)),
    )


def _words(username: str, email: str) -> tuple[Rule, ...]:
    names = (username, *email_words(email))
    return (
        (
            "common",
            "must not be a common password",
            lambda p: p.lower() not in COMMON,
        ),
        (
            "username",
            "must not hold the username",
            lambda p: not holds(p, username),
        ),
        (
            "email",
            "must not hold the name in the e-mail address",
            lambda p: (
                not any(holds(p, word) for word in names[1:]) or holds(p, username)
            ),
        ),
        (
            "context",
            "must not hold the name of the academy",
            lambda p: not any(holds(p, word) for word in ACADEMY),
        ),
        (
            "similar",
            "must not be like the username or the e-mail address",
            lambda p: (
                not any(is_like(p, name) and not holds(p, name) for name in names)
            ),
        ),
    )


def _has(kind: Callable[[str], bool]) -> Callable[[str], bool]:
    return lambda password: any(map(kind, password))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verification gives: whether it matched, and a better hash if due."""

    matches: bool
    upgraded: str | None = None


class HashingPool(Protocol):
    """Runs jobs that would block the event loop."""

    async def run(self, work: Callable[[], Result]) -> Result:
        """Run the job of a log-in. Raises Overloaded."""

    async def run_all(self, works: Iterable[Callable[[], Result]]) -> list[Result]:
        """Run the jobs of a batch, after those of log-ins. Raises Overloaded."""


class PasswordHasher:
    """Hashes with Argon2id (19 MiB, t=2, p=1: OWASP) in a pool; reads bcrypt, too."""

    def __init__(self, pool: HashingPool) -> None:
        self._pool = pool
        self._context = CryptContext(
            ["argon2", "bcrypt"],
            deprecated="auto",
            argon2__type="ID",
            argon2__memory_cost=MEMORY_KIB,
            argon2__time_cost=PASSES,
            argon2__parallelism=1,
        )
        self._dummy: str = self._context.hash(token_urlsafe())

    async def hash(self, password: str) -> str:
        """Give a new salted hash. Raises Overloaded."""
        hashed: str = await self._pool.run(partial(self._context.hash, password))
        return hashed

    async def hash_all(self, passwords: Sequence[str]) -> list[str]:
        """Give a new salted hash of each; log-ins go before. Raises Overloaded."""
        works = [partial(self._context.hash, password) for password in passwords]
        return await self._pool.run_all(works)

    async def verify(self, password: str, hashed: str | None) -> Verdict:
        """Tell whether the password made the hash; None takes as long and never does.

        A bcrypt hash is made by no password above 72 bytes: bcrypt reads no further,
        and what follows must not be left out of account. Raises Overloaded.
        """
        if hashed and is_bcrypt(hashed) and len(password.encode()) > BCRYPT_READS:
            hashed = None
        target = hashed or self._dummy
        matches, upgraded = await self._pool.run(
            partial(self._context.verify_and_update, password, target)
        )
        return Verdict(matches, upgraded) if hashed else Verdict(False)
