"""Passwords: the policy for new ones, and hashing outside the event loop.

The composition rule of the conventions is the default. NIST SP 800-63B-4 3.1.1.2 (15
characters or more, no composition) is a setting, because ASVS 6.2.5 forbids
composition rules. Both refuse common passwords, and passwords that contain or resemble
the names of the owner or the academy. The list of common passwords is zxcvbn's (MIT),
30,000 passwords by frequency.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from secrets import token_urlsafe
from typing import Protocol, TypeVar

from passlib.context import CryptContext
from zxcvbn.frequency_lists import FREQUENCY_LISTS

from server.domain.credentials.context_words import (
    ACADEMY_WORDS,
    contains_word,
    email_words,
    resembles_word,
)
from server.domain.credentials.imported_hashes import (
    OWN_MEMORY_KIB,
    OWN_PASSES,
    is_bcrypt,
)
from server.domain.errors import InvalidFields, Violation

COMMON_PASSWORDS = frozenset(
    word for word in FREQUENCY_LISTS["passwords"] if len(word) >= 8
)
BCRYPT_MAX_BYTES = 72  # bcrypt ignores the rest of a password
Result = TypeVar("Result")


class PasswordPolicy(StrEnum):
    """The rules for new passwords."""

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
    violations = [
        Violation(field, description, f"password.{rule}")
        for rule, description, accepts in (*_rules(policy), *_words(username, email))
        if not accepts(password)
    ]
    if violations:
        raise InvalidFields(violations)


Rule = tuple[str, str, Callable[[str], bool]]


def _rules(policy: PasswordPolicy) -> tuple[Rule, ...]:
    if policy is PasswordPolicy.NIST:
        return (("min_len", "must be at least 15 characters", lambda p: len(p) >= 15),)
    return (
        ("upper", "must contain an upper-case letter", _has(str.isupper)),
        ("lower", "must contain a lower-case letter", _has(str.islower)),
        ("digit", "must contain a digit", _has(str.isdigit)),
    )


def _words(username: str, email: str) -> tuple[Rule, ...]:
    names = (username, *email_words(email))

    def contains_email_word(password: str) -> bool:
        # a word of the username too is reported once, by the rule `username`
        words = names[1:] if not contains_word(password, username) else ()
        return any(contains_word(password, word) for word in words)

    def resembles_name(password: str) -> bool:
        words = (name for name in names if not contains_word(password, name))
        return any(resembles_word(password, name) for name in words)

    return (
        (
            "common",
            "must not be a common password",
            lambda p: p.lower() not in COMMON_PASSWORDS,
        ),
        (
            "username",
            "must not contain the username",
            lambda p: not contains_word(p, username),
        ),
        (
            "email",
            "must not contain the name in the e-mail address",
            lambda p: not contains_email_word(p),
        ),
        (
            "context",
            "must not contain the name of the academy",
            lambda p: not any(contains_word(p, word) for word in ACADEMY_WORDS),
        ),
        (
            "similar",
            "must not resemble the username or the e-mail address",
            lambda p: not resembles_name(p),
        ),
    )


def _has(test: Callable[[str], bool]) -> Callable[[str], bool]:
    """Return a rule that one character passes a test."""
    return lambda password: any(map(test, password))


@dataclass(frozen=True, slots=True)
class VerificationResult:
    """The result of a verification; `upgraded` is a better hash, if one is due."""

    matches: bool
    upgraded: str | None = None


class JobPool(Protocol):
    """Runs jobs that would block the event loop."""

    def reserved(self) -> AbstractContextManager[None]:
        """Reserve capacity for a log-in that the block runs. Raises Overloaded."""

    async def run(self, work: Callable[[], Result]) -> Result:
        """Run the job of a log-in. Raises Overloaded."""

    async def run_all(self, works: Iterable[Callable[[], Result]]) -> list[Result]:
        """Run the jobs of a batch, after those of log-ins. Raises Overloaded."""


class PasswordHasher:
    """Hashes with argon2id (19 MiB, t=2, p=1: OWASP) in a pool; verifies bcrypt too."""

    def __init__(self, pool: JobPool) -> None:
        self._pool = pool
        self._context = CryptContext(
            ["argon2", "bcrypt"],
            deprecated="auto",
            argon2__type="ID",
            argon2__memory_cost=OWN_MEMORY_KIB,
            argon2__time_cost=OWN_PASSES,
            argon2__parallelism=1,
        )
        self._dummy: str = self._context.hash(token_urlsafe())

    def reserved(self) -> AbstractContextManager[None]:
        """Reserve capacity for a password that is hashed or verified in the block.

        Raises Overloaded, before anything is spent on a call that is refused.
        """
        return self._pool.reserved()

    async def hash(self, password: str) -> str:
        """Return a new salted hash. Raises Overloaded."""
        hashed: str = await self._pool.run(partial(self._context.hash, password))
        return hashed

    async def hash_all(self, passwords: Sequence[str]) -> list[str]:
        """Return a new hash of each; log-ins have priority. Raises Overloaded."""
        jobs = [partial(self._context.hash, password) for password in passwords]
        return await self._pool.run_all(jobs)

    async def verify(self, password: str, hashed: str | None) -> VerificationResult:
        """Verify a password; None takes as long as a hash and never matches.

        A password above 72 bytes matches no bcrypt hash, because bcrypt would ignore
        the rest of it. Raises Overloaded.
        """
        if hashed and is_bcrypt(hashed) and len(password.encode()) > BCRYPT_MAX_BYTES:
            hashed = None
        target = hashed or self._dummy
        matches, upgraded = await self._pool.run(
            partial(self._context.verify_and_update, password, target)
        )
        return (
            VerificationResult(matches, upgraded)
            if hashed
            else VerificationResult(False)
        )
