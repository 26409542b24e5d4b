"""Rate limits: exact sliding windows, never more than `limit` within any `per`.

An address counts as an IPv4 address or an IPv6 /64, which is what one customer
of a provider holds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Protocol

from server.domain.clock import Clock

IPV6_CUSTOMER = 64


@dataclass(frozen=True, slots=True)
class Window:
    """At most `limit` calls within any `per`."""

    limit: int
    per: timedelta


@dataclass(frozen=True, slots=True)
class Bucket:
    """What one key has used of one window. `scope` names the rule's owner."""

    scope: str
    key: str
    window: Window


@dataclass(frozen=True, slots=True)
class Refusal:
    """The window that is full, and when it has room again."""

    window: Window
    retry_after: timedelta


class Limiter(Protocol):
    """Counts calls; a call that one bucket refuses is counted by none."""

    async def take(self, buckets: Sequence[Bucket]) -> Refusal | None:
        """Count one call in every bucket, or give the refusal that lasts longest."""


def address_key(address: str) -> str:
    """Give what one source is counted by; text that is no address stays itself."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped:
            return str(parsed.ipv4_mapped)
        return str(ip_network((parsed, IPV6_CUSTOMER), strict=False))
    return address


@dataclass(slots=True)
class SlidingWindows:
    """A Limiter in this process's memory, for when Redis is away.

    Holds the times of the last `limit` calls of each bucket; forgets the buckets
    longest unused beyond `most`, at the cost that a flood of keys loosens limits.
    """

    clock: Clock
    most: int = 100_000
    _times: dict[tuple[str, str, Window], deque[datetime]] = field(default_factory=dict)

    async def take(self, buckets: Sequence[Bucket]) -> Refusal | None:
        """Count one call in every bucket, or give the refusal that lasts longest."""
        now = self.clock()
        held = [(bucket, self._touch(bucket)) for bucket in buckets]
        refusals = [
            Refusal(bucket.window, times[0] + bucket.window.per - now)
            for bucket, times in held
            if len(times) == bucket.window.limit and times[0] > now - bucket.window.per
        ]
        if refusals:
            return max(refusals, key=lambda refusal: refusal.retry_after)
        for _, times in held:
            times.append(now)
        return None

    def _touch(self, bucket: Bucket) -> deque[datetime]:
        key = (bucket.scope, bucket.key, bucket.window)
        times = self._times.pop(key, None)
        if times is None:
            times = deque(maxlen=bucket.window.limit)
            if len(self._times) >= self.most:
                del self._times[next(iter(self._times))]
        self._times[key] = times
        return times
