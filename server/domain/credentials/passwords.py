"""Passwords: which are good enough, and hashing them without stopping the loop.

Rules: the conventions' composition rule by default; NIST SP 800-63B-4 3.1.1.2
(15 or more, no composition) by setting, because ASVS 6.2.5 forbids composition
rules. Both refuse common passwords and such as hold the username. The list is
zxcvbn's (MIT), 30,000 passwords by frequency.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from secrets import token_urlsafe
from typing import TypeVar

from passlib.context import CryptContext
from zxcvbn.frequency_lists import FREQUENCY_LISTS

from server.domain.errors import InvalidFields, Overloaded, Violation

COMMON = frozenset(word for word in FREQUENCY_LISTS["passwords"] if len(word) >= 8)
KIB = 1024
Result = TypeVar("Result")


class PasswordPolicy(StrEnum):
    """Which rules a new password is held to."""

    COMPOSITION = "composition"
    NIST = "nist"


def check_password(
    password: str, username: str, policy: PasswordPolicy, field: str = "password"
) -> None:
    """Raise InvalidFields with every rule that a new password breaks."""
    broken = [
        Violation(field, description, f"password.{rule}")
        for rule, description, holds in _rules(policy)
        if not holds(password)
    ]
    if password.lower() in COMMON:
        broken.append(
            Violation(field, "must not be a common password", "password.common")
        )
    if username and username.lower() in password.lower():
        broken.append(
            Violation(field, "must not hold the username", "password.username")
        )
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


def _has(kind: Callable[[str], bool]) -> Callable[[str], bool]:
    return lambda password: any(map(kind, password))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verification gives: whether it matched, and a better hash if due."""

    matches: bool
    upgraded: str | None = None


class PasswordHasher:
    """Argon2id (19 MiB, t=2, p=1: OWASP) in a bounded pool; bcrypt is still read.

    The pool has cores - 1 threads, at least 1, so that the loop keeps a core: with
    as many as cores a log-in flood doubles the latency of everything else. At most
    `queue` calls wait for each thread; beyond that Overloaded is raised at once.
    """

    def __init__(self, threads: int | None = None, queue: int = 100) -> None:
        self._threads = threads or max(1, (os.cpu_count() or 1) - 1)
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="hash")
        self._most = self._threads * (queue + 1)
        self._busy = 0
        self._idle = asyncio.Event()
        self._context = CryptContext(
            ["argon2", "bcrypt"],
            deprecated="auto",
            argon2__type="ID",
            argon2__memory_cost=19 * KIB,
            argon2__time_cost=2,
            argon2__parallelism=1,
        )
        self._dummy: str = self._context.hash(token_urlsafe())

    async def hash(self, password: str) -> str:
        """Give a new salted hash. Raises Overloaded."""
        hashed: str = await self._run(lambda: self._context.hash(password))
        return hashed

    async def verify(self, password: str, hashed: str | None) -> Verdict:
        """Tell whether the password made the hash; None takes as long and never does.

        Raises Overloaded.
        """
        target = hashed or self._dummy
        matches, upgraded = await self._run(
            lambda: self._context.verify_and_update(password, target)
        )
        return Verdict(matches, upgraded) if hashed else Verdict(False)

    async def _run(self, work: Callable[[], Result]) -> Result:
        if self._busy >= self._most:
            raise Overloaded(retry_after=timedelta(seconds=1))
        self._busy += 1
        self._idle.clear()
        future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        # a cancelled caller's hash still keeps its thread: count what runs
        future.add_done_callback(self._done)
        return await asyncio.shield(future)

    async def idle(self) -> None:
        """Wait until no hash is being made."""
        await self._idle.wait()

    def _done(self, future: asyncio.Future[Result]) -> None:
        self._busy -= 1
        if not self._busy:
            self._idle.set()
        if not future.cancelled():
            future.exception()  # read, or the loop complains of a caller gone

    def close(self) -> None:
        """End the pool once its present work is done."""
        self._pool.shutdown(wait=True, cancel_futures=True)
