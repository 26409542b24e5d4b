"""The embedded servers: owned by one, gone with their owner, kept on disk."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg
import pytest
import redis

from server.embedded.processes import EmbeddedServerError
from server.embedded.servers import EmbeddedServers

ROOT = Path(__file__).parent.parent
OWNER = """
import signal, sys
from pathlib import Path
from server.embedded.servers import EmbeddedServers
servers = EmbeddedServers(Path(sys.argv[1]), durable=False)
print(servers.start_postgres(), servers.start_valkey(), flush=True)
signal.pause()
"""
PATIENCE_SECONDS = 20


@pytest.fixture(scope="module")
def state() -> Iterator[Path]:
    """Give one folder for all: making the data takes longer than all the tests.

    Not pytest's own folder, which is closed to the account that root drops to.
    """
    with TemporaryDirectory(prefix="blatam-test-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "state"


@pytest.fixture
def owned(state: Path) -> Iterator[EmbeddedServers]:
    servers = EmbeddedServers(state)
    yield servers
    servers.stop()


@pytest.fixture
def stranger(state: Path) -> Iterator[subprocess.Popen[str]]:
    """Give another process that owns the state, its servers started."""
    command = [sys.executable, "-c", OWNER, str(state)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None
        assert it.stdout.readline().startswith("postgresql")
        yield it
        it.kill()
    eventually(lambda: not serving(state))


def serving(state: Path) -> list[int]:
    """List the servers that work below `state`, by process number."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_text(errors="replace")
        except OSError:
            continue
        names = "bin/postgres" in line or "valkey-server" in line
        if names and str(state) in line:
            found.append(int(process.name))
    return found


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def query(url: str, statement: str) -> object:
    async def ask() -> object:
        connection = await asyncpg.connect(url.replace("+asyncpg", ""))
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return asyncio.run(ask())


def ping(url: str) -> bool:
    with redis.Redis.from_url(url) as client:
        return bool(client.ping())


linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties children")


@linux
def test_a_killed_owner_leaves_no_server(
    state: Path, stranger: subprocess.Popen[str]
) -> None:
    """Kill -9 of the owner ends Postgres and Valkey."""
    assert len(serving(state)) == 2
    stranger.kill()
    eventually(lambda: not serving(state))


@linux
def test_stop_leaves_no_server(state: Path, owned: EmbeddedServers) -> None:
    """After stop nothing runs, and a second stop does no harm."""
    owned.start_postgres()
    owned.start_valkey()
    assert len(serving(state)) == 2
    owned.stop()
    owned.stop()
    assert not serving(state)


def test_a_restart_keeps_the_data(owned: EmbeddedServers) -> None:
    """Rows and, as durable, keys are there again after stop and start."""
    url = owned.start_postgres()
    query(url, "drop table if exists kept")
    query(url, "create table kept as select 42 as n")
    with redis.Redis.from_url(owned.start_valkey()) as client:
        client.set("kept", "42")
    owned.stop()
    assert query(owned.start_postgres(), "select n from kept") == 42
    with redis.Redis.from_url(owned.start_valkey()) as client:
        assert client.get("kept") == b"42"


def test_a_second_owner_is_refused(
    state: Path, stranger: subprocess.Popen[str]
) -> None:
    """The state folder has one owner; the second is told who, and breaks nothing."""
    second = EmbeddedServers(state)
    for start in (second.start_postgres, second.start_valkey):
        with pytest.raises(EmbeddedServerError, match=f"by process {stranger.pid}"):
            start()
    second.stop()
    assert stranger.poll() is None
    assert len(serving(state)) == 2


@linux
def test_a_new_owner_may_follow_a_killed_one_at_once(
    state: Path, stranger: subprocess.Popen[str]
) -> None:
    """Servers still shutting down after kill -9 are waited for."""
    stranger.kill()
    stranger.wait()
    heir = EmbeddedServers(state)
    try:
        assert query(heir.start_postgres(), "select 1") == 1
        assert ping(heir.start_valkey())
    finally:
        heir.stop()


@pytest.mark.parametrize("pid", [os.getpid(), 2**22 - 1], ids=["alive", "gone"])
def test_a_pid_file_left_by_a_crash_is_no_obstacle(
    state: Path, owned: EmbeddedServers, pid: int
) -> None:
    """A number that is nobody's, or another program's by now, is not believed."""
    owned.start_postgres()
    owned.stop()
    left = f"{pid}\n{state}/pgdata\n1\n5432\n{state}\n\n0 0\nready\n"
    (state / "pgdata/postmaster.pid").write_text(left)
    (state / "valkey").mkdir(exist_ok=True)
    (state / "valkey/valkey.pid").write_text(f"{pid}\n")
    assert query(owned.start_postgres(), "select 1") == 1
    assert ping(owned.start_valkey())


def test_a_long_path_is_no_obstacle(tmp_path: Path) -> None:
    """Sockets move to a short folder, which goes again, when the path is too long."""
    servers = EmbeddedServers(tmp_path / ("long" * 30))
    try:
        url = servers.start_valkey()
        folder = Path(url.removeprefix("unix://")).parent
        assert ping(url)
        assert folder.stat().st_mode & 0o777 == 0o700
    finally:
        servers.stop()
    assert not folder.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root drops to another account")
def test_root_may_keep_its_state_below_a_closed_folder(tmp_path: Path) -> None:
    """Below a 0700 folder the data goes where Postgres's account can follow."""
    tmp_path.chmod(0o700)
    servers = EmbeddedServers(tmp_path / "state", durable=False)
    try:
        url = servers.start_postgres()
        far = (tmp_path / "state/elsewhere").readlink()
        assert query(url, "select 1") == 1
    finally:
        servers.stop()
    assert not far.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root drops to another account")
def test_a_far_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    """Whoever took the far folder's name in /var/tmp is not trusted with data."""
    state, far = tmp_path / "state", tmp_path / "far"
    state.mkdir()
    far.mkdir()
    far.chmod(0o777)
    (state / "elsewhere").symlink_to(far)
    servers = EmbeddedServers(state)
    with pytest.raises(EmbeddedServerError, match="no longer ours"):
        servers.start_postgres()
    servers.stop()


def test_a_failed_start_says_what_the_server_said(
    tmp_path: Path,
) -> None:
    """The error ends with the last lines of the server's log."""
    (tmp_path / "valkey").mkdir()
    (tmp_path / "valkey/valkey.sock").mkdir()
    servers = EmbeddedServers(tmp_path)
    with pytest.raises(EmbeddedServerError, match=r"valkey.log ends with:(.|\n)*sock"):
        servers.start_valkey()
    servers.stop()


@linux
def test_ctrl_c_passes_the_servers_by(state: Path, owned: EmbeddedServers) -> None:
    """A terminal signals its own session; the owner then ends them in order."""
    owned.start_postgres()
    owned.start_valkey()
    assert all(os.getsid(pid) != os.getsid(0) for pid in serving(state))
