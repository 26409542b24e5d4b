"""The erasure log: what a restore needs to know of erased users."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from server.composition.accounts import open_erasure_log
from server.config import ConfigurationError, load
from server.domain.accounts.users import Role
from server.domain.errors import LastAdmin, StoreUnavailable
from server.store.accounts.erasure import Erasures
from server.store.accounts.erasure_log import (
    DamagedErasureLog,
    ErasureLog,
    read_erasures,
)
from server.store.accounts.personal_data import PostgresPersonalData
from server.store.connections.connect import Database
from tests.fakes import NOON, Clock
from tests.store.conftest import StoresUnderTest
from tests.store.counting import Injected, failing_at
from tests.store.test_retention import RetentionHarness
from tests.store.test_users import new

LINE = b"42 2026-01-02T12:00:00.000000Z\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "erasures"


@pytest.fixture
def log(path: Path) -> ErasureLog:
    log = ErasureLog(path, Clock(NOON))
    log.create()
    return log


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def logged_ids(path: Path) -> list[int]:
    """Return the id in each line."""
    return [int(line.split()[0]) for line in path.read_text().splitlines()]


async def test_erasure_log_has_ids_and_times(log: ErasureLog, path: Path) -> None:
    await log.append(42)
    await log.append(7)
    assert read_erasures(path) == {42: NOON, 7: NOON}
    assert os.stat(path).st_mode & 0o777 == 0o600


async def test_appends_of_several_processes_are_whole_lines(path: Path) -> None:
    """Each has a file descriptor of its own, as each process has."""
    logs = [ErasureLog(path, Clock(NOON)) for _ in range(4)]
    logs[0].create()
    ids = range(1, 101)
    await asyncio.gather(*(logs[n % 4].append(n) for n in ids))
    assert sorted(read_erasures(path)) == list(ids)


async def test_append_after_interrupted_append(log: ErasureLog, path: Path) -> None:
    """A crash has left a part of a line; it is ignored before and after."""
    write(path, LINE + LINE[:17].replace(b"42", b"43"))
    assert list(read_erasures(path)) == [42]
    await log.append(44)
    assert list(read_erasures(path)) == [42, 44]


@pytest.mark.parametrize(
    "damaged",
    [
        b"x\n",
        b"0 2026-01-02T12:00:00.000000Z\n",
        LINE.replace(b"42", b"%d" % (2**63 - 1)),
        LINE.replace(b"42", b"%d" % (2**62 + 1)),
        LINE[:20] + b"\n",
        b"\0\n",
    ],
)
def test_damaged_line_is_named(path: Path, damaged: bytes) -> None:
    path.write_bytes(LINE + damaged + LINE)
    with pytest.raises(DamagedErasureLog, match="line 2 is damaged"):
        read_erasures(path)


@pytest.mark.parametrize("foreign", [b"hello world", b"7,2026", b"7 x interrupted\n"])
def test_end_of_a_foreign_file_is_no_incomplete_line(
    path: Path, foreign: bytes
) -> None:
    """The service does not start with it: its lines would follow foreign ones."""
    path.write_bytes(foreign)
    with pytest.raises(ConfigurationError, match="line 1 is damaged"):
        open_erasure_log(load(erasure_log=path), Clock())
    assert path.read_bytes() == foreign


@pytest.mark.parametrize("end", [b"\0" * 30, b"43", b"43 2026-01-02T12:00", LINE[:-1]])
def test_incomplete_last_line_is_tolerated(path: Path, end: bytes) -> None:
    path.write_bytes(LINE + end)
    assert list(read_erasures(path)) == [42]


async def test_partial_write_is_an_error(
    log: ErasureLog, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk takes a part of the line; the repeated append is complete."""
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, line: write(file, line[:9]))
        with pytest.raises(StoreUnavailable):
            await log.append(42)
    assert not read_erasures(path)
    await log.append(42)
    assert list(read_erasures(path)) == [42]


async def test_log_that_has_disappeared_is_not_created(
    log: ErasureLog, path: Path
) -> None:
    """Its volume is not mounted: a new file would not have the earlier erasures."""
    os.unlink(path)
    with pytest.raises(StoreUnavailable):
        await log.append(42)
    with pytest.raises(DamagedErasureLog, match="cannot be read"):
        read_erasures(path)


def test_log_that_cannot_be_written_is_named_at_start(tmp_path: Path) -> None:
    settings = load(erasure_log=tmp_path / "missing" / "log")
    with pytest.raises(ConfigurationError, match=r"ERASURE_LOG: .*missing/log cannot"):
        open_erasure_log(settings, Clock())


@pytest_asyncio.fixture
async def harness(
    real_stores: StoresUnderTest, database: Database, redis_url: str, log: ErasureLog
) -> AsyncIterator[RetentionHarness]:
    """Return stores whose erasures are logged."""
    harness = RetentionHarness(real_stores, database, redis_url)
    erasures = Erasures(database, harness.feed, log=log)
    harness.retention.erasures = erasures
    harness.personal_data = PostgresPersonalData(
        database, harness.feed, lambda _: None, erasures
    )
    yield harness
    await harness.redis.aclose()


async def test_every_committed_erasure_is_logged_once(
    harness: RetentionHarness, path: Path
) -> None:
    """By a call, and by the retention of deleted accounts."""
    ana, bea = await harness.signed_up(), await harness.signed_up("bea")
    await harness.personal_data.erase(ana.id, NOON)
    await harness.stores.users.delete(bea.id, NOON)
    await harness.sweep(timedelta(days=31))
    assert logged_ids(path) == [ana.id, bea.id]


async def test_erasure_that_is_rolled_back_is_not_logged(
    harness: RetentionHarness, database: Database, path: Path
) -> None:
    ana = await harness.signed_up()
    root = await harness.stores.users.add(new("root", role=Role.ADMIN))
    with failing_at(database, 3), pytest.raises(Injected):
        await harness.personal_data.erase(ana.id, NOON)
    with pytest.raises(LastAdmin):
        await harness.personal_data.erase(root.id, NOON)
    assert not logged_ids(path)


async def test_erasure_is_logged_when_the_log_can_be_written_again(
    harness: RetentionHarness, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller is not told that the user is erased; the sweeps complete it."""
    ana = await harness.signed_up()
    with monkeypatch.context() as patch:
        full = OSError(errno.ENOSPC, "No space left on device")
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(full))
        with pytest.raises(StoreUnavailable):
            await harness.personal_data.erase(ana.id, NOON)
        await harness.sweep(timedelta(minutes=1))
        assert not await harness.rows("users")
        assert await harness.rows("erasures")
    write(path, b"")
    await harness.sweep(timedelta(minutes=2))
    assert list(read_erasures(path)) == [ana.id]
    assert not await harness.rows("erasures")
