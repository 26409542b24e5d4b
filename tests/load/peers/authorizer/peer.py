"""Authorizer on the service's Postgres (P18)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from tests.load.peers import academy, built
from tests.load.peers.academy import LIST, LOG_IN, ME, PASSWORD, REFRESH, SIGN_UP
from tests.load.peers.client import Plan
from tests.load.peers.compare import CALLERS, Bar, Read, Row, Service, Write, compare
from tests.load.service import Service as Academy
from tests.load.service import free_address, listening

NAME = "authorizer"
BARS = {name: Bar(1) for name in (ME, LOG_IN, REFRESH, LIST, SIGN_UP)}
# Its passwords are always bcrypt, so log-in and sign-up compare different hashes.
ABOUT = "bcrypt 12"
SECRET = "a secret of the benchmark, 32 bytes or more"
ADMIN = {"x-authorizer-admin-secret": SECRET}
JSON = {"content-type": "application/json"}
OPTIONS = {
    "admin-secret": SECRET,
    "client-id": NAME,
    "client-secret": SECRET,
    "database-type": "postgres",
    "disable-mfa": "true",
    "grpc-insecure": "true",
    "host": "127.0.0.1",
    "jwt-secret": SECRET,
    "jwt-type": "HS256",
    "log-level": "info",
    "rate-limit-burst": "1000000",
    "rate-limit-rps": "1000000",
}
# As a public client does: a secret would be verified by bcrypt 12 in each call.
REFRESH_BODY = (
    f'{{"grant_type":"refresh_token","client_id":"{NAME}","refresh_token":"$token"}}'
)


def rows(server: Academy, ours: Service) -> Iterator[Row]:
    """Compare all calls."""
    with _running(server) as theirs:
        yield from compare(theirs, ours, BARS)


@contextmanager
def _running(server: Academy) -> Iterator[Service]:
    sockets = built.new_database(server, NAME)
    address = free_address()
    ports = (a.rpartition(":")[2] for a in (address, free_address(), free_address()))
    options = OPTIONS | {"url": f"http://{address}"}
    options |= {"database-url": f"host={sockets} user=blatam dbname={NAME}"}
    options |= dict(zip(("http-port", "grpc-port", "metrics-port"), ports, strict=True))
    # It finds its templates in the working directory.
    command = ["env", f"--chdir={built.folder(NAME)}", "./authorizer"]
    command += [f"--{name}={value}" for name, value in options.items()]
    log = server.folder / "authorizer.log"
    with listening(command, address, log, {}, pinned=False) as process:
        about = f"{built.version(NAME)}, {ABOUT}"
        yield Service(NAME, about, [process], _works(address))


def _works(address: str) -> dict[str, Read | Write]:
    url = f"http://{address}"
    # A POST from elsewhere than its own pages is refused.
    headers = {"origin": url}
    account = f'"password":"{PASSWORD}"'
    sign_up = Plan(
        address,
        "/v1/signup",
        f'{{"email":"user$number@example.com",{account},'
        f'"confirm_password":"{PASSWORD}"}}',
        '"access_token":"[^"]',
        [""] * CALLERS,
        headers=headers,
    )
    signing_up = academy.sign_up_users(sign_up)
    log_in = Plan(
        address,
        "/v1/login",
        f'{{"email":"user$caller@example.com",{account},'
        '"scope":["openid","email","profile","offline_access"]}',
        '"refresh_token":"([^"]+)"',
        [""] * CALLERS,
        headers=headers,
    )
    refresh = replace(log_in, path="/oauth/token", body=REFRESH_BODY)
    bearer = academy.token(log_in, '"access_token":"([^"]+)"')
    page = b'{"pagination":{"limit":100,"page":1}}'
    return {
        ME: Read(f"{url}/v1/profile", {"authorization": f"Bearer {bearer}"}),
        LOG_IN: Write(log_in),
        REFRESH: Write(academy.signed_in(refresh, log_in)),
        SIGN_UP: signing_up,
        LIST: Read(f"{url}/v1/admin/users", headers | ADMIN | JSON, page, "id", 100),
    }
