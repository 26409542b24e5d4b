"""Requests that may be repeated: the first answer is given again.

The answer is written in the same transaction as the change, keyed by caller,
RPC and request id, and kept for 24 hours. A fingerprint under a key of ours
tells the same request from another one without keeping it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, Protocol, TypeVar

from server.domain.credentials.secret_key import Mac
from server.domain.errors import RequestIdReused

KEPT = timedelta(hours=24)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class RequestKey:
    """What a repeat has in common with the first request."""

    caller: str
    method: str
    request_id: str


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A first answer, and the fingerprint of what it answered."""

    fingerprint: bytes
    answer: bytes


class ResponseExists(Exception):
    """The store found the key already answered; read it and give it again."""


@dataclass(frozen=True, slots=True)
class IdempotencyRecord(Generic[Result]):
    """What a store writes beside a change, so that a repeat changes nothing."""

    key: RequestKey
    fingerprint: bytes
    answered_at: datetime
    render: Callable[[Result], bytes]


class ResponseStore(Protocol):
    """Reads the answers that stores have written beside their changes."""

    async def find(self, key: RequestKey, since: datetime) -> StoredResponse | None:
        """Give the answer written under this key since then."""


@dataclass(frozen=True, slots=True)
class Idempotency:
    """Recognises repeats."""

    store: ResponseStore
    mac: Mac

    def fingerprint(self, request: bytes) -> bytes:
        """Give what stands for the request's bytes."""
        return self.mac.sign(request)

    async def stored_response(
        self, key: RequestKey, request: bytes, now: datetime
    ) -> bytes | None:
        """Give the first answer to this request, None if it is the first.

        Raises RequestIdReused if the id was used for another request.
        """
        stored = await self.store.find(key, now - KEPT)
        if stored is None:
            return None
        if not self.mac.verify(request, stored.fingerprint):
            raise RequestIdReused
        return stored.answer
