"""E-mails and SIGKILL at random moments, while calls commit and e-mails are sent (L18).

A call that was answered has committed: its e-mail must arrive. A call in flight at the
kill may have committed or not. Every e-mail must belong to one of these calls.
"""

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc

from blatam.auth.v1 import auth_pb2, auth_pb2_grpc
from blatam.user.v1 import user_pb2, user_pb2_grpc
from server.embedded.servers import EmbeddedServers
from server.store.connections.connect import Database
from server.store.migrate import upgrade
from tests.load.row import ResultRow
from tests.mailbox import Mailbox, mailbox
from tests.processes import serving, settled
from tests.running import NO_LIMITS, PASSWORD

KILLS = 50
CALLERS = 4
MAX_UPTIME_SECONDS = 1.5
CALL_INTERVAL_SECONDS = 0.05  # about the rate at which one process can mail
REQUEST = auth_pb2.RequestEmailVerificationRequest()
Metadata = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Tally:
    """Calls sent and calls answered, by address."""

    sent: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)


def rows() -> list[ResultRow]:
    """Return the e-mails that are missing or unexpected, and the duplicates."""
    with TemporaryDirectory(prefix="blatam-bench-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)  # Postgres runs under another account
        servers = EmbeddedServers(folder)
        try:
            urls = servers.start_postgres(), servers.start_valkey()
            return asyncio.run(_measured(*urls))
        finally:
            servers.stop()


async def _measured(database_url: str, redis_url: str) -> list[ResultRow]:
    await upgrade(Database(database_url))
    tally = Tally()
    async with mailbox() as box:
        settings = {
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "SECRET_KEY": "0123456789abcdef" * 2,
            "SMTP_URL": box.url,
            "RATE_LIMITS": json.dumps(NO_LIMITS),
        }
        async with serving(settings) as process:
            callers = [await _signed_in(process.channel, n) for n in range(CALLERS)]
        for _ in range(KILLS):
            async with serving(settings) as process:
                await _calling(process.channel, callers, tally)
        async with serving(settings):
            await settled(database_url, 120)
        return _results(box, tally)


async def _signed_in(channel: grpc.aio.Channel, number: int) -> tuple[str, Metadata]:
    name = f"caller{number}"
    account = user_pb2.CreateUserRequest(
        email=f"{name}@example.com", username=name, password=PASSWORD
    )
    await user_pb2_grpc.UserServiceStub(channel).CreateUser(account)
    login = auth_pb2.LoginRequest(identifier=name, password=PASSWORD)
    tokens = (await auth_pb2_grpc.AuthServiceStub(channel).Login(login)).tokens
    bearer = (("authorization", f"Bearer {tokens.access_token}"),)
    return account.email, bearer


async def _calling(
    channel: grpc.aio.Channel, callers: list[tuple[str, Metadata]], tally: Tally
) -> None:
    """Let all callers call repeatedly, for a random time."""
    stub = auth_pb2_grpc.AuthServiceStub(channel)

    async def call(address: str, bearer: Metadata) -> None:
        while True:
            tally.sent[address] += 1
            await stub.RequestEmailVerification(REQUEST, metadata=bearer)
            tally.answered[address] += 1
            await asyncio.sleep(CALL_INTERVAL_SECONDS)

    tasks = [asyncio.create_task(call(*caller)) for caller in callers]
    await asyncio.sleep(random.uniform(0.1, MAX_UPTIME_SECONDS))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _results(box: Mailbox, tally: Tally) -> list[ResultRow]:
    mails = [m for m in box.mails if "Confirm" in m["Subject"]]
    once = Counter(to for to, _ in {(m["To"], m["Message-ID"]) for m in mails})
    missing = sum((tally.answered - once).values())
    unexpected = sum((once - tally.sent).values())
    total, duplicates = once.total(), len(mails) - once.total()
    notes = f"{total:,} e-mails, {tally.answered.total():,} calls completed"
    return [
        ResultRow(
            f"L18 kill -9 x{KILLS}: e-mails missing or unexpected",
            missing + unexpected,
            0,
            better="lower",
            unit="e-mails",
            notes=f"{missing} missing, {unexpected} unexpected; {notes}",
        ),
        ResultRow(
            f"L18 kill -9 x{KILLS}: duplicate e-mails",
            100 * duplicates / total,
            1,
            better="lower",
            unit="%",
            notes=f"{duplicates} of {total:,}",
        ),
    ]
