"""Idempotent requests: a repeat gets the first response.

The response is written in the same transaction as the change, under the caller, the
RPC and the request id, and kept for 24 hours. A keyed fingerprint of the request
distinguishes a repeat from another request, without storing the request.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, Protocol, TypeVar

from server.domain.credentials.secret_key import Mac
from server.domain.errors import RequestIdReused

RESPONSE_RETENTION = timedelta(hours=24)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class RequestKey:
    """The key that a repeat has in common with the first request."""

    caller: str
    method: str
    request_id: str


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A first response, and the fingerprint of its request."""

    fingerprint: bytes
    answer: bytes


class ResponseExists(Exception):
    """The store found a response under the key; read it and return it again."""


@dataclass(frozen=True, slots=True)
class IdempotencyRecord(Generic[Result]):
    """What a store writes beside a change, so that a repeat changes nothing."""

    key: RequestKey
    fingerprint: bytes
    answered_at: datetime
    render: Callable[[Result], bytes]


class ResponseStore(Protocol):
    """Reads the responses that stores have written beside their changes."""

    async def find(self, key: RequestKey, since: datetime) -> StoredResponse | None:
        """Return the response that was written under this key since then."""


@dataclass(frozen=True, slots=True)
class Idempotency:
    """Recognises repeated requests."""

    store: ResponseStore
    mac: Mac

    def fingerprint(self, request: bytes) -> bytes:
        """Return the fingerprint of a request's bytes."""
        return self.mac.sign(request)

    async def stored_response(
        self, key: RequestKey, request: bytes, now: datetime
    ) -> bytes | None:
        """Return the first response to this request; None if it is the first.

        Raises RequestIdReused if the id was used for another request.
        """
        stored = await self.store.find(key, now - RESPONSE_RETENTION)
        if stored is None:
            return None
        if not self.mac.verify(request, stored.fingerprint):
            raise RequestIdReused
        return stored.answer
