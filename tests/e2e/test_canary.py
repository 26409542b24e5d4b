"""After a journey with every kind of secret, none of them is stored or logged."""

from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import httpx
import orjson
import pyotp
import pytest
import pytest_asyncio
import sqlalchemy as sa
from redis.asyncio import Redis

from blatam.auth.v1 import auth_pb2, auth_pb2_grpc
from server.store.connections.connect import Database
from tests.collector import Collector, collecting
from tests.mailbox import Mailbox, link_of, mailbox, token_of
from tests.processes import serving, settled
from tests.running import PASSWORD

CHANGED, RESET, WRONG = "Violet8parrot", "Orange9magpie", "Crimson7heron"
ANA = {"email": "ana@example.com", "username": "ana", "password": PASSWORD}
PERSONAL_DATA = ("ana", "bea", "example.com", "127.0.0.1", "203.0.113.")
API = "/api/v1"
AUTH = f"{API}/auth"
_hosts = count(1)


@dataclass(slots=True)
class Journey:
    """A browser, an internal service, and every secret that they have used."""

    http: httpx.AsyncClient
    grpc: auth_pb2_grpc.AuthServiceStub
    box: Mailbox
    database: Database
    log: Path
    traces: Collector
    secrets: set[str] = field(default_factory=lambda: {PASSWORD, CHANGED, RESET, WRONG})

    async def post(
        self, path: str, body: object = None, token: str = "", status_class: int = 2
    ) -> Any:
        """Send a POST; check the status class; collect the secrets in the answer."""
        headers = {"authorization": f"Bearer {token}"} if token else {}
        headers["x-forwarded-for"] = f"203.0.113.{next(_hosts)}"  # limits are per host
        answer = await self.http.post(path, json=body or {}, headers=headers)
        assert answer.status_code // 100 == status_class, answer.text
        result = answer.json() if answer.content else {}
        names = ("accessToken", "refreshToken", "secret")
        self.secrets |= {result[name] for name in names if result.get(name)}
        return result

    async def log_in(self, password: str = PASSWORD) -> Any:
        """Open a session."""
        body = {"identifier": "ana", "password": password}
        return await self.post(f"{AUTH}/login", body)

    async def token(self, address: str, subject: str) -> str:
        """Wait for an e-mail; return its token."""
        mail = await self.box.mail(address, subject)
        self.secrets |= {token_of(mail), link_of(mail)}
        return token_of(mail)


@pytest_asyncio.fixture
async def journey(database_url: str, redis_url: str) -> AsyncIterator[Journey]:
    """Run the service as operators do, at the most verbose log level."""
    async with mailbox() as box, collecting() as collector:
        env = {
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "SECRET_KEY": "fedcba9876543210" * 4,
            "SMTP_URL": box.url,
            "LOG_LEVEL": "debug",
            "TRUSTED_PROXIES": "127.0.0.1/32",
            "METRICS_LISTEN": "127.0.0.1:0",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "100",  # milliseconds
        }
        database = Database(database_url)
        async with (
            serving(env) as served,
            httpx.AsyncClient(base_url=served.rest) as http,
        ):
            stub = auth_pb2_grpc.AuthServiceStub(served.channel)
            yield Journey(http, stub, box, database, served.log, collector)
        await database.close()


async def test_secrets_are_stored_and_logged_nowhere(
    journey: Journey, database_url: str, redis_url: str
) -> None:
    """R39: no password, token, key or link in logs, metrics, traces, Redis or a dump.

    Every line of the log is JSON; tracebacks are within them.
    """
    await sign_up_and_log_in(journey)
    await use_service_keys(journey)
    await use_second_factors(journey)
    await change_password_and_email(journey)
    await cause_errors(journey)
    await settled(database_url)
    outputs = {
        "log": journey.log.read_text(),
        "Redis": await keys_and_values(redis_url),
        "database": await rows(journey.database),
        "metrics": await metrics(journey.log.read_bytes()),
        "traces": await traces(journey),
    }
    assert 'grpc_method="Login"' in outputs["metrics"]
    assert not [name for name in PERSONAL_DATA if name in outputs["metrics"]]
    # "ana" is also a part of names of tables
    personal_values = ('"ana', '"bea', *PERSONAL_DATA[2:])
    assert not [name for name in personal_values if name in outputs["traces"]]
    assert "/blatam.auth.v1.AuthService/Login" in outputs["log"]
    assert "UndefinedTable" in outputs["log"]
    assert all(orjson.loads(line)["event"] for line in outputs["log"].splitlines())
    assert "rate:{" in outputs["Redis"]
    assert "user:{" in outputs["Redis"]
    assert "late@example.com" in outputs["database"]
    assert len(journey.secrets) > 20
    for where, text in outputs.items():
        leaked = [s for s in journey.secrets for f in forms(s) if f in text]
        assert not leaked, where


async def traces(journey: Journey) -> str:
    """Return all spans as text, once that of the last call has arrived."""
    lines = map(orjson.loads, journey.log.read_bytes().splitlines())
    *_, last = (line for line in lines if line["event"] == "call")
    span = await journey.traces.span(last["method"][1:], last["trace_id"])
    assert span.span_id.hex() == last["span_id"]
    return journey.traces.text


async def metrics(log: bytes) -> str:
    """Return the page of the metrics listener."""
    lines = map(orjson.loads, log.splitlines())
    port = next(line["port"] for line in lines if line["event"] == "serving metrics")
    async with httpx.AsyncClient() as http:
        response = await http.get(f"http://127.0.0.1:{port}/metrics")
    assert response.status_code == 200
    return response.text


async def sign_up_and_log_in(journey: Journey) -> None:
    request_id = "5a3ee1e6-2a6f-4c4c-9d9e-0e3d4f0f7d11"
    for _ in range(2):
        await journey.post(f"{API}/users", {**ANA, "requestId": request_id})
    proof = await journey.token(ANA["email"], "Welcome")
    await journey.post(f"{AUTH}/verify-email", {"token": proof})
    tokens = await journey.log_in()
    await journey.post(f"{AUTH}/refresh", {"refreshToken": tokens["refreshToken"]})
    browser = {"x-token-mode": "cookie", "sec-fetch-site": "same-origin"}
    body = {"identifier": "ana", "password": PASSWORD}
    answer = await journey.http.post(f"{AUTH}/login", json=body, headers=browser)
    journey.secrets |= {*answer.cookies.values(), answer.json()["accessToken"]}
    assert answer.cookies


async def use_service_keys(journey: Journey) -> None:
    promoted = sa.text("update users set role = 3 where username = 'ana'")
    async with journey.database.transaction() as connection:
        await connection.execute(promoted)
    token = (await journey.log_in())["accessToken"]
    key = await journey.post(f"{AUTH}/service-keys", {"name": "billing"}, token)
    await journey.post(f"{AUTH}/verify", {"token": token}, key["secret"])
    await journey.post(f"{AUTH}/signing-keys:rotate", {"force": True}, token)
    bearer = {"authorization": f"Bearer {key['secret']}"}
    assert (await journey.http.get(f"{API}/users", headers=bearer)).is_success
    body = {"email": "bea@example.com", "username": "bea", "password": CHANGED}
    made = await journey.post(f"{API}/users:batchCreate", {"users": [body]}, token)
    assert made["outcomes"][0]["user"]["username"] == "bea"
    path = f"{API}/users/{made['outcomes'][0]['user']['id']}"
    bearer = {"authorization": f"Bearer {token}"}
    for shown in (path, f"{path}:export", f"{API}/audit-events"):
        assert (await journey.http.get(shown, headers=bearer)).is_success


async def use_second_factors(journey: Journey) -> None:
    bea = {"identifier": "bea", "password": CHANGED}
    token = (await journey.post(f"{AUTH}/login", bea))["accessToken"]
    created = await journey.post(f"{AUTH}/factors/totp", {}, token)
    confirm = {"totpCode": pyotp.TOTP(created["secret"]).now()}
    path = f"{AUTH}/factors/{created['id']}:confirm"
    codes = (await journey.post(path, confirm, token))["recoveryCodes"]
    journey.secrets |= {created["otpauthUri"], *codes}
    for code, status_class in ((codes[0], 2), (codes[0], 4)):  # the second stays
        challenge = (await journey.post(f"{AUTH}/login", bea))["challenge"]
        token = challenge["challengeToken"]
        journey.secrets.add(token)
        complete = {"challengeToken": token, "recoveryCode": code}
        await journey.post(f"{AUTH}/login:complete", complete, "", status_class)


async def change_password_and_email(journey: Journey) -> None:
    token = (await journey.log_in())["accessToken"]
    change = {"currentPassword": PASSWORD, "newPassword": CHANGED}
    await journey.post(f"{AUTH}/change-password", change, token)
    move = {"newEmail": "late@example.com", "currentPassword": CHANGED}
    await journey.post(f"{AUTH}/change-email", move, token)
    proof = await journey.token("late@example.com", "Confirm your new")
    await journey.post(f"{AUTH}/verify-email", {"token": proof})
    request = {"identifier": "late@example.com"}
    await journey.post(f"{AUTH}/request-password-reset", request)
    proof = await journey.token("late@example.com", "new password")
    reset = {"token": proof, "newPassword": RESET}
    await journey.post(
        f"{AUTH}/reset-password", reset | {"newPassword": "greenhorse"}, status_class=4
    )
    await journey.post(f"{AUTH}/reset-password", reset)
    await journey.post(f"{AUTH}/reset-password", reset, status_class=4)


async def cause_errors(journey: Journey) -> None:
    """Send secrets in the wrong places, then remove a table."""
    tokens = await journey.log_in(RESET)
    access, refresh = tokens["accessToken"], tokens["refreshToken"]
    for identifier in (WRONG, access[:255]):
        body = {"identifier": identifier, "password": WRONG}
        await journey.post(f"{AUTH}/login", body, status_class=4)
        await journey.post(f"{AUTH}/request-password-reset", {"identifier": identifier})
    for wrong in ({"refreshToken": access}, {RESET: 1}, [RESET], RESET):
        await journey.post(f"{AUTH}/refresh", wrong, refresh, status_class=4)
    await journey.post(f"{AUTH}/{RESET}?{RESET}=1", {}, RESET, status_class=4)
    await journey.post(f"{AUTH}/login?password={RESET}", {}, status_class=4)
    await journey.http.get(f"{API}/users/me?access_token={access}")
    broken = f'{{"password": "{RESET}",,'.encode()
    await journey.http.post(f"{AUTH}/login", content=broken)
    request = auth_pb2.RefreshTokenRequest(refresh_token=access)
    with pytest.raises(grpc.aio.AioRpcError):
        await journey.grpc.RefreshToken(request, metadata=(("x-note", RESET),))
    async with journey.database.transaction() as connection:
        await connection.execute(sa.text("alter table sessions rename to gone"))
    await journey.post(f"{AUTH}/refresh", {"refreshToken": refresh}, status_class=5)
    body = {"identifier": "ana", "password": RESET}
    await journey.post(f"{AUTH}/login", body, status_class=5)


def forms(secret: str) -> list[str]:
    """Return the forms in which a secret may be written."""
    raw = secret.encode()
    return [secret, raw.hex(), b64encode(raw).decode().rstrip("=")]


async def keys_and_values(redis_url: str) -> str:
    """Return everything in Redis as text."""
    content: list[object] = []
    async with Redis.from_url(redis_url) as client:
        async for key in client.scan_iter():
            kind: Any = await client.type(key)
            content += [key, await READS[kind.decode()](client, key)]
    return repr(content)


READS: dict[str, Any] = {
    "string": lambda client, key: client.get(key),
    "hash": lambda client, key: client.hgetall(key),
    "list": lambda client, key: client.lrange(key, 0, -1),
    "set": lambda client, key: client.smembers(key),
    "zset": lambda client, key: client.zrange(key, 0, -1),
    "stream": lambda client, key: client.xrange(key),
}


async def rows(database: Database) -> str:
    """Return every row of every table as text, bytes included."""
    tables = sa.text(
        "select table_name from information_schema.tables where table_schema = 'public'"
    )
    content: list[str] = []
    async with database.reading() as connection:
        for name in (await connection.execute(tables)).scalars().all():
            result = await connection.execute(sa.text(f'select * from "{name}"'))
            content += [repr(tuple(row)) for row in result]
    return "\n".join(content)
