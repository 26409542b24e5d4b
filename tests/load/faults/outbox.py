"""L18: SIGKILL at random moments, while calls commit and e-mails are sent.

A call that was answered has committed: its e-mail must arrive. A call in flight at the
kill may have committed or not. Every e-mail must belong to one of these calls.
"""

import asyncio
import os
import random
from collections import Counter
from dataclasses import dataclass, field

import grpc

from blatam.auth.v1 import auth_pb2, auth_pb2_grpc
from blatam.user.v1 import user_pb2, user_pb2_grpc
from tests.load.faults.experiment import at_most, experiment
from tests.load.faults.policies import NONE, open_channel
from tests.load.faults.replicas import testbed
from tests.load.row import ResultRow
from tests.mailbox import Mailbox, mailbox
from tests.processes import settled
from tests.running import PASSWORD

KILLS = int(os.environ.get("KILLS", "20"))
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


@experiment("L18", max_seconds=60 + 8 * KILLS)
async def processes_are_killed_while_mailing() -> list[ResultRow]:
    """Kill the service at random moments; every third time the mail server is down."""
    tally = Tally()
    async with mailbox() as box, testbed(SMTP_URL=box.url) as bed:
        process = await bed.started()
        async with open_channel([process.grpc], NONE) as channel:
            callers = [await _signed_in(channel, n) for n in range(CALLERS)]
        for number in range(KILLS):
            await (box.shut() if number % 3 == 2 else box.open())
            async with open_channel([process.grpc], NONE) as channel:
                await _calling(channel, callers, tally)
            await process.kill()
            await process.start()
        await box.open()
        await settled(bed.stores.database_url, 120)
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
        at_most(
            f"kill -9 x{KILLS}: e-mails missing or unexpected",
            missing + unexpected,
            0,
            "e-mails",
            f"{missing} missing, {unexpected} unexpected; {notes}",
        ),
        at_most(
            f"kill -9 x{KILLS}: duplicate e-mails",
            100 * duplicates / total,
            1,
            "%",
            f"{duplicates} of {total:,}",
        ),
    ]
