"""Service keys: known to every process, stored hashed, their use recorded."""

from server.store.connect import Database
from server.store.credentials.service_keys import PostgresServiceKeys
from tests.fakes import NOON, Clock


async def test_service_keys_are_known_to_other_process_after_its_poll(
    database: Database,
) -> None:
    """A new key, a revoked key, and the time of the last use."""
    one, other = (PostgresServiceKeys(database, Clock()) for _ in range(2))
    key = await one.add("billing", b"digest", False, NOON, None)
    assert one.known(b"digest") == key
    assert other.known(b"digest") is None
    await other.refresh()
    assert other.known(b"digest") == key
    await other.refresh()
    (used,) = await one.all()
    assert used.last_used_at == NOON
    assert await other.revoke(key.id, NOON)
    assert not await other.revoke(key.id, NOON)
    assert other.known(b"digest") is None
    await one.refresh()
    assert one.known(b"digest") is None
    assert await one.all() == []
