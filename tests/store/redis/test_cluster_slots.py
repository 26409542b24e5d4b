"""Which slot a command needs, and which node has it."""

from typing import Any

import pytest
from redis._parsers.encoders import Encoder

from server.store.redis.cluster_slots import primaries_by_slot, probe_keys, slot_of

encode = Encoder("utf-8", "strict", False).encode  # type: ignore[no-untyped-call]
SLOT_OF_USER_7 = 1716  # CLUSTER KEYSLOT {7}


@pytest.mark.parametrize(
    ("command", "slot"),
    [
        (("HGET", "user:{7}:abc", "user"), SLOT_OF_USER_7),
        (("SET", b"{7}", "x"), SLOT_OF_USER_7),
        (("EVALSHA", "digest", 2, "a{7}", "b{7}", 1), SLOT_OF_USER_7),
        (("EVALSHA", "digest", 0, "a{7}"), None),
        (("PUBLISH", "{7}", b""), None),
        (("PING",), None),
    ],
)
def test_slot_is_that_of_the_first_key(command: tuple[Any, ...], slot: int) -> None:
    assert slot_of(command, encode) == slot


def test_slots_have_the_primaries_of_the_reply() -> None:
    """A node that does not know its own address is where it was asked."""
    reply = [
        [0, 5460, [b"10.0.0.1", 7001, b"id1", []], [b"10.0.0.4", 7004, b"id4", []]],
        [5461, 10922, [b"", 7002, b"id2", []]],
        [10923, 16382, [None, 7003, b"id3", []]],
    ]
    primaries = primaries_by_slot(reply, "seed.internal")
    assert len(primaries) == 16384
    assert primaries[0] == primaries[5460] == ("10.0.0.1", 7001)
    assert primaries[5461] == ("seed.internal", 7002)
    assert primaries[16382] == ("seed.internal", 7003)
    assert primaries[16383] is None


def test_probe_key_is_stored_by_its_primary() -> None:
    narrow, wide = ("a", 1), ("b", 2)
    primaries = [wide] * 16000 + [narrow] * 10 + [None] * 374
    keys = probe_keys(primaries)
    assert keys.keys() == {narrow, wide}
    for node, key in keys.items():
        slot = slot_of(("SET", key), encode)
        assert slot is not None
        assert primaries[slot] == node
