"""Supabase Auth on the service's Postgres (P18)."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import argon2
import jwt

from tests.load.peers import academy, built
from tests.load.peers.academy import LIST, LOG_IN, ME, PASSWORD, REFRESH, SIGN_UP
from tests.load.peers.client import Plan
from tests.load.peers.compare import CALLERS, Bar, Read, Row, Service, Write, compare
from tests.load.service import Service as Academy
from tests.load.service import free_address, listening

NAME = "supabase_auth"
BARS = {ME: Bar(4), LOG_IN: Bar(1), REFRESH: Bar(3), LIST: Bar(1.5), SIGN_UP: Bar(1)}
# It verifies given hashes of any parameters, and makes new ones always by bcrypt.
ABOUT = f"log-in: {academy.HASH}, sign-up: bcrypt 10"
SECRET = "a secret of the benchmark, 32 bytes or more"
ADMIN = jwt.encode({"role": "service_role", "aud": "authenticated"}, SECRET, "HS256")
HASHER = argon2.PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)


def rows(server: Academy, ours: Service) -> Iterator[Row]:
    """Compare all calls."""
    with _running(server) as theirs:
        yield from compare(theirs, ours, BARS)


@contextmanager
def _running(server: Academy) -> Iterator[Service]:
    prepare = ("create schema auth", "create role postgres")  # its migrations need them
    sockets = built.new_database(server, NAME, prepare)
    address = free_address()
    url = f"http://{address}"
    settings = {
        "API_EXTERNAL_URL": url,
        "DATABASE_URL": f"postgres://blatam@/{NAME}?host={sockets}&search_path=auth",
        "DB_NAMESPACE": "auth",
        "GOTRUE_API_HOST": "127.0.0.1",
        "GOTRUE_DB_DRIVER": "postgres",
        # By default it keeps 2 connections and opens the others for each call.
        "GOTRUE_DB_MAX_POOL_SIZE": "20",
        "GOTRUE_DB_MAX_IDLE_POOL_SIZE": "20",
        "GOTRUE_DB_MIGRATIONS_PATH": str(built.folder(NAME) / "migrations"),
        "GOTRUE_JWT_ADMIN_ROLES": "service_role",
        "GOTRUE_JWT_AUD": "authenticated",
        "GOTRUE_JWT_DEFAULT_GROUP_NAME": "authenticated",
        "GOTRUE_JWT_SECRET": SECRET,
        "GOTRUE_LOG_LEVEL": "info",
        "GOTRUE_MAILER_AUTOCONFIRM": "true",
        "GOTRUE_SITE_URL": url,
        "PORT": address.rpartition(":")[2],
    }
    program = str(built.folder(NAME) / "auth")
    migrate = [program, "migrate"]
    subprocess.run(migrate, env=os.environ | settings, check=True, capture_output=True)
    command = [program, "serve"]
    log = server.folder / "supabase_auth.log"
    with listening(command, address, log, settings, pinned=False) as process:
        about = f"{built.version(NAME)}, {ABOUT}"
        yield Service(NAME, about, [process], _works(address))


def _works(address: str) -> dict[str, Read | Write]:
    admin = {"authorization": f"Bearer {ADMIN}"}
    hashed = HASHER.hash(PASSWORD)
    given = Plan(
        address,
        "/admin/users",
        f'{{"email":"given$number@example.com","password_hash":"{hashed}",'
        '"email_confirm":true}',
        '"id":"',
        [""] * CALLERS,
        headers=admin,
    )
    Write(given).make(CALLERS)
    sign_up = Plan(
        address,
        "/signup",
        f'{{"email":"user$number@example.com","password":"{PASSWORD}"}}',
        '"access_token":"',
        [""] * CALLERS,
    )
    signing_up = academy.sign_up_users(sign_up)
    log_in = Plan(
        address,
        "/token?grant_type=password",
        f'{{"email":"given$caller@example.com","password":"{PASSWORD}"}}',
        '"refresh_token":"([^"]+)"',
        [""] * CALLERS,
    )
    refresh = replace(
        log_in,
        path="/token?grant_type=refresh_token",
        body='{"refresh_token":"$token"}',
    )
    bearer = academy.token(log_in, '"access_token":"([^"]+)"')
    url = f"http://{address}"
    return {
        ME: Read(f"{url}/user", {"authorization": f"Bearer {bearer}"}),
        LOG_IN: Write(log_in),
        REFRESH: Write(academy.signed_in(refresh, log_in)),
        SIGN_UP: signing_up,
        LIST: Read(
            f"{url}/admin/users?page=1&per_page=100", admin, b"", "is_anonymous", 100
        ),
    }
