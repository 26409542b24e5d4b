"""Slots of a cluster: which a command needs, and which node has them.

https://valkey.io/topics/cluster-spec
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.utils import str_if_bytes

from server.store.redis.redis_url import Node

SLOTS = REDIS_CLUSTER_HASH_SLOTS
_WITHOUT_KEY = frozenset({"PING", "PUBLISH", "ECHO"})
_SCRIPTS = frozenset({"EVAL", "EVALSHA"})


def slot_of(command: Sequence[Any], encode: Callable[[Any], bytes]) -> int | None:
    """Return the slot of a command's first key; None if any node can execute it."""
    name = command[0]
    if name in _SCRIPTS:
        return key_slot(encode(command[3])) if command[2] else None
    if len(command) == 1 or name in _WITHOUT_KEY:
        return None
    return key_slot(encode(command[1]))


def primaries_by_slot(reply: Sequence[Any], asked: str) -> list[Node | None]:
    """Return the primary of each slot from a reply to CLUSTER SLOTS.

    A node that does not know its own address has the host where it was asked.
    """
    primaries: list[Node | None] = [None] * SLOTS
    for first, last, (host, port, *_), *_replicas in reply:
        primary = (str_if_bytes(host) or asked, int(port))
        primaries[first : last + 1] = [primary] * (last - first + 1)
    return primaries


def probe_keys(primaries: Sequence[Node | None]) -> Mapping[Node, str]:
    """Return a key for each primary, which it stores."""
    missing = {primary for primary in primaries if primary}
    keys: dict[Node, str] = {}
    numbers = count()
    while missing:
        key = f"rate:{{probe{next(numbers)}}}"
        primary = primaries[key_slot(key.encode())]
        if primary in missing:
            keys[primary] = key
            missing.remove(primary)
    return keys
