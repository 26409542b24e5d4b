"""What has committed is delivered, whatever dies in between."""

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import sqlalchemy as sa

from blatam.auth.v1 import auth_pb2, auth_pb2_grpc
from blatam.user.v1 import user_pb2, user_pb2_grpc
from server.store.connect import Database
from server.store.tables import outbox
from tests.mailbox import Mailbox, mailbox
from tests.running import NO_LIMITS, PASSWORD, running

ROOT = Path(__file__).parents[2]
KILLS = 3
EACH = 5


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


@asynccontextmanager
async def serving(env: Mapping[str, str]) -> AsyncIterator[grpc.aio.Channel]:
    """Run `academy serve` for as long as the block lasts; it ends by kill -9."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "server", "serve"),
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **env},
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with grpc.aio.insecure_channel(env["GRPC_LISTEN"]) as channel:
            async with asyncio.timeout(30):
                await channel.channel_ready()
            yield channel
    finally:
        process.kill()
        await process.wait()


async def signed_in(channel: grpc.aio.Channel) -> tuple[tuple[str, str], ...]:
    """Give what calls of somebody new bear."""
    account = user_pb2.CreateUserRequest(
        email="ana@example.com", username="ana", password=PASSWORD
    )
    await user_pb2_grpc.UserServiceStub(channel).CreateUser(account)
    login = auth_pb2.LoginRequest(identifier="ana", password=PASSWORD)
    tokens = (await auth_pb2_grpc.AuthServiceStub(channel).Login(login)).tokens
    return (("authorization", f"Bearer {tokens.access_token}"),)


async def test_kill_9_between_commit_and_delivery(
    database_url: str, redis_url: str
) -> None:
    """L18: no mail is missing, none is invented, none comes twice.

    Each time one mail stands at the server's door and others wait behind it.
    """
    ask = auth_pb2.RequestEmailVerificationRequest()
    async with mailbox() as box:
        env = {
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "SECRET_KEY": "0123456789abcdef" * 2,
            "SMTP_URL": box.url,
            "RATE_LIMITS": json.dumps(NO_LIMITS),
        }
        who: tuple[tuple[str, str], ...] = ()
        await box.shut()
        for _ in range(KILLS):
            env |= {"GRPC_LISTEN": free_address(), "HTTP_LISTEN": free_address()}
            async with serving(env) as channel:
                who = who or await signed_in(channel)
                auth = auth_pb2_grpc.AuthServiceStub(channel)
                for _ in range(EACH):
                    await auth.RequestEmailVerification(ask, metadata=who)
                await box.someone_waits()
            await box.someone_waits(0)
        assert not box.mails
        await box.open()
        async with serving(env):
            await settled(Database(database_url))
        assert sorted(box.subjects("ana@example.com")) == [
            *["Confirm your e-mail address"] * KILLS * EACH,
            "Welcome to Blatam Academy",
        ]
        assert len({mail["Message-ID"] for mail in box.mails}) == len(box.mails)


async def settled(database: Database) -> None:
    """Wait until nothing is left to deliver."""
    query = sa.select(outbox.c.id).where(outbox.c.state == 0).limit(1)
    async with asyncio.timeout(30):
        while True:
            async with database.reading() as connection:
                if (await connection.execute(query)).first() is None:
                    break
            await asyncio.sleep(0.02)
    await database.close()


async def test_a_mail_server_that_was_away(database_url: str, redis_url: str) -> None:
    """Everything arrives once it is back; calls do not wait for it."""
    address = free_address()
    url = f"smtp://{address}"
    async with running(database_url, redis_url, smtp_url=url) as service:
        users = [await service.sign_up() for _ in range(3)]
        async with mailbox(int(address.rpartition(":")[2])) as box:
            await box.filled(3)
            await arrived(box, [user.email for user in users])


async def arrived(box: Mailbox, addresses: list[str]) -> None:
    for address in addresses:
        await box.mail(address, "Welcome")
    assert len(box.mails) == len(addresses)
