"""PocketBase on its SQLite, with the log of requests that it keeps by default (P18)."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx

from tests.load.peers import academy, built
from tests.load.peers.academy import LIST, LOG_IN, ME, PASSWORD, REFRESH, SIGN_UP
from tests.load.peers.client import Plan
from tests.load.peers.compare import CALLERS, Bar, Read, Row, Service, Write, compare
from tests.load.service import Service as Academy
from tests.load.service import free_address, listening

NAME = "pocketbase"
# Its passwords are always bcrypt, so log-in and sign-up compare different hashes.
ABOUT = "bcrypt 10, SQLite"
BARS = {name: Bar(1) for name in (ME, LOG_IN, REFRESH, LIST, SIGN_UP)}
USERS = "/api/collections/users"
ADMIN = {"identity": "admin@example.com", "password": PASSWORD}


def rows(server: Academy, ours: Service) -> Iterator[Row]:
    """Compare all calls."""
    with _running(server.folder) as theirs:
        yield from compare(theirs, ours, BARS)


@contextmanager
def _running(folder: Path) -> Iterator[Service]:
    address = free_address()
    program = [str(built.folder(NAME) / "pocketbase"), f"--dir={folder / NAME}"]
    admin = [*program, "superuser", "upsert", *ADMIN.values()]
    subprocess.run(admin, check=True, capture_output=True)
    command = [*program, "serve", "--dev=false", f"--http={address}"]
    log = folder / "pocketbase.log"
    with listening(command, address, log, {}, pinned=False) as process:
        _let_users_list(address)
        about = f"{built.version(NAME)}, {ABOUT}"
        yield Service(NAME, about, [process], _works(address))


def _let_users_list(address: str) -> None:
    """Allow every signed-in user to list and read users, as the service does."""
    rule = '@request.auth.id != ""'
    with httpx.Client(base_url=f"http://{address}/api/collections") as client:
        answer = client.post("/_superusers/auth-with-password", json=ADMIN)
        headers = {"authorization": answer.raise_for_status().json()["token"]}
        rules = {"listRule": rule, "viewRule": rule}
        client.patch("/users", json=rules, headers=headers).raise_for_status()


def _works(address: str) -> dict[str, Read | Write]:
    sign_up = Plan(
        address,
        f"{USERS}/records",
        f'{{"email":"user$number@example.com","password":"{PASSWORD}",'
        f'"passwordConfirm":"{PASSWORD}"}}',
        '"id":"',
        [""] * CALLERS,
    )
    signing_up = academy.sign_up_users(sign_up)
    log_in = Plan(
        address,
        f"{USERS}/auth-with-password",
        f'{{"identity":"user$caller@example.com","password":"{PASSWORD}"}}',
        '"token":"([^"]+)"',
        [""] * CALLERS,
    )
    refresh = replace(
        log_in,
        path=f"{USERS}/auth-refresh",
        body="",
        headers={"authorization": "$token"},
    )
    headers = {"authorization": academy.token(log_in, log_in.answer)}
    user = academy.token(log_in, '"id":"([^"]+)"')
    url = f"http://{address}{USERS}/records"
    return {
        ME: Read(f"{url}/{user}", headers),
        LOG_IN: Write(log_in),
        REFRESH: Write(academy.signed_in(refresh, log_in)),
        SIGN_UP: signing_up,
        LIST: Read(f"{url}?perPage=100&skipTotal=1", headers, b"", "id", 100),
    }
