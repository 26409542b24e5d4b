"""Rate limits: exact sliding windows, never more than `limit` within any `per`.

An address is counted as an IPv4 address or as an IPv6 /64, which is what a provider
assigns to one customer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Protocol

from server.domain.clock import Clock

IPV6_PREFIX_LENGTH = 64
MAX_BUCKETS = 100_000


@dataclass(frozen=True, slots=True)
class Window:
    """At most `limit` calls within any `per`."""

    limit: int
    per: timedelta


@dataclass(frozen=True, slots=True)
class Bucket:
    """One key's share of one window. `scope` names the rule that the key belongs to."""

    scope: str
    key: str
    window: Window


@dataclass(frozen=True, slots=True)
class AccountLimit:
    """A limit that counts by account, which only the rule itself looks up.

    `key` joins the other things that the limit counts by. RPCs whose limits are equal
    share one count for each account.
    """

    window: Window
    key: str

    def bucket(self, account: str) -> Bucket:
        """Return the bucket of an account."""
        return Bucket("account", f"{account}|{self.key}", self.window)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A full window, and the time until it has room again."""

    window: Window
    retry_after: timedelta


class Limiter(Protocol):
    """Counts calls; a call that one bucket refuses is counted in none."""

    async def take(self, buckets: Sequence[Bucket]) -> Refusal | None:
        """Count one call in every bucket, or return the refusal that lasts longest."""


def address_key(address: str) -> str:
    """Return the key that counts a client address; other text is its own key."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped:
            return str(parsed.ipv4_mapped)
        return str(ip_network((parsed, IPV6_PREFIX_LENGTH), strict=False))
    return address


@dataclass(slots=True)
class SlidingWindows:
    """A Limiter in the memory of this process, for use while Redis is unavailable.

    Keeps the times of the last `limit` calls of each bucket. Beyond `max_buckets` it
    forgets the least recently used one; the accepted cost is that a flood of keys
    loosens limits.
    """

    clock: Clock
    max_buckets: int = MAX_BUCKETS
    _times: dict[tuple[str, str, Window], deque[datetime]] = field(default_factory=dict)

    async def take(self, buckets: Sequence[Bucket]) -> Refusal | None:
        """Count one call in every bucket, or return the refusal that lasts longest."""
        now = self.clock()
        touched = [(bucket, self._touch(bucket)) for bucket in buckets]
        refusals = [
            Refusal(bucket.window, times[0] + bucket.window.per - now)
            for bucket, times in touched
            if len(times) == bucket.window.limit and times[0] > now - bucket.window.per
        ]
        if refusals:
            return max(refusals, key=lambda refusal: refusal.retry_after)
        for _, times in touched:
            times.append(now)
        return None

    def _touch(self, bucket: Bucket) -> deque[datetime]:
        """Return a bucket's call times, and mark it as the most recently used."""
        key = (bucket.scope, bucket.key, bucket.window)
        times = self._times.pop(key, None)
        if times is None:
            times = deque(maxlen=bucket.window.limit)
            if len(self._times) >= self.max_buckets:
                del self._times[next(iter(self._times))]
        self._times[key] = times
        return times
