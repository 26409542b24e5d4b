"""fastapi-users with two uvicorn workers, on the service's Postgres (P10)."""

from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from tests.load.peers import academy, built
from tests.load.peers.academy import LOG_IN, ME, PASSWORD
from tests.load.peers.client import Plan
from tests.load.peers.compare import CALLERS, Bar, Read, Row, Service, Write, compare
from tests.load.service import Service as Academy
from tests.load.service import free_address, listening

NAME = "fastapi_users"
BARS = {ME: Bar(8), LOG_IN: Bar(1)}
FORM = {"content-type": "application/x-www-form-urlencoded"}
HASH = academy.HASH


def rows(server: Academy, ours: Service) -> Iterator[Row]:
    """Compare who am I and log-in."""
    with _running(server) as theirs:
        yield from compare(theirs, ours, BARS)


@contextmanager
def _running(server: Academy) -> Iterator[Service]:
    sockets = built.new_database(server, NAME)
    address = free_address()
    command = [str(built.folder(NAME) / "bin" / "uvicorn"), "app:app", "--workers=2"]
    command += ["--app-dir=tests/load/peers/fastapi_users"]
    command += [f"--port={address.rpartition(':')[2]}"]
    settings = {
        "DATABASE_URL": f"postgresql+asyncpg://blatam@/{NAME}?host={sockets}",
        "JWT_SECRET": "a secret of the benchmark, 32 bytes or more",
    }
    log = server.folder / "fastapi_users.log"
    with listening(command, address, log, settings, pinned=False) as process:
        workers = [c.pid for c in psutil.Process(process).children()]
        about = f"{built.version(NAME)}, 2 uvicorn workers, {HASH}"
        yield Service(NAME, about, workers, _works(address))


def _works(address: str) -> dict[str, Read | Write]:
    sign_up = f'{{"email":"user$number@example.com","password":"{PASSWORD}"}}'
    academy.sign_up_users(
        Plan(address, "/auth/register", sign_up, '"id"', [""] * CALLERS, status=201)
    )
    log_in = Plan(
        address,
        "/auth/login",
        f"username=user$caller%40example.com&password={PASSWORD}",
        '"access_token":"([^"]+)"',
        [""] * CALLERS,
        headers=FORM,
    )
    bearer = academy.token(log_in, log_in.answer)
    headers = {"authorization": f"Bearer {bearer}"}
    me = Read(f"http://{address}/users/me", headers)
    return {ME: me, LOG_IN: Write(log_in)}
