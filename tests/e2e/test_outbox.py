"""Committed e-mails are delivered, whichever process stops in between."""

import json

import grpc
import sqlalchemy as sa

from blatam.auth.v1 import auth_pb2, auth_pb2_grpc
from blatam.user.v1 import user_pb2, user_pb2_grpc
from server.store.connections.connect import Database
from server.store.tables import metadata
from tests.mailbox import address_of, bound_socket, mailbox, token_of
from tests.processes import serving, settled
from tests.running import NO_LIMITS, PASSWORD, running

KILLS = 3
MAILS_PER_KILL = 5


async def signed_in(channel: grpc.aio.Channel) -> tuple[tuple[str, str], ...]:
    """Sign up and log in; return the metadata of later calls."""
    account = user_pb2.CreateUserRequest(
        email="ana@example.com", username="ana", password=PASSWORD
    )
    await user_pb2_grpc.UserServiceStub(channel).CreateUser(account)
    login = auth_pb2.LoginRequest(identifier="ana", password=PASSWORD)
    tokens = (await auth_pb2_grpc.AuthServiceStub(channel).Login(login)).tokens
    return (("authorization", f"Bearer {tokens.access_token}"),)


async def test_outbox_survives_kill_between_commit_and_delivery(
    database_url: str, redis_url: str
) -> None:
    """L18: no e-mail is missing, unexpected or delivered twice.

    Each time one e-mail waits at the server, and others wait behind it.
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
        credentials: tuple[tuple[str, str], ...] = ()
        await box.shut()
        for _ in range(KILLS):
            async with serving(env) as served:
                credentials = credentials or await signed_in(served.channel)
                auth = auth_pb2_grpc.AuthServiceStub(served.channel)
                for _ in range(MAILS_PER_KILL):
                    await auth.RequestEmailVerification(ask, metadata=credentials)
                await box.clients_wait()
            await box.clients_wait(0)
        assert not box.mails
        await box.open()
        async with serving(env):
            await settled(database_url)
        assert sorted(box.subjects("ana@example.com")) == [
            *["Confirm your e-mail address"] * KILLS * MAILS_PER_KILL,
            "Welcome to Blatam Academy",
        ]
        assert len({mail["Message-ID"] for mail in box.mails}) == len(box.mails)


async def test_concurrent_deliveries_survive_kill(
    database_url: str, redis_url: str
) -> None:
    """L18: e-mails to several accounts are in progress; each arrives once."""
    accounts = 5
    async with mailbox() as box:
        env = {
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "SECRET_KEY": "0123456789abcdef" * 2,
            "SMTP_URL": box.url,
            "RATE_LIMITS": json.dumps(NO_LIMITS),
        }
        await box.shut()
        async with serving(env) as served:
            users = user_pb2_grpc.UserServiceStub(served.channel)
            for number in range(accounts):
                await users.CreateUser(
                    user_pb2.CreateUserRequest(
                        email=f"m{number}@d{number}.example",
                        username=f"member{number}",
                        password=PASSWORD,
                    )
                )
            await box.clients_wait(accounts)
        await box.clients_wait(0)
        assert not box.mails
        await box.open()
        async with serving(env):
            await settled(database_url)
        assert sorted(mail["To"] for mail in box.mails) == [
            f"m{number}@d{number}.example" for number in range(accounts)
        ]


async def test_mail_is_delivered_when_server_returns(
    database_url: str, redis_url: str
) -> None:
    """Every e-mail arrives once the server is back; calls do not wait for it.

    R39: no table contains a mailed token.
    """
    listener = bound_socket()
    url = f"smtp://{address_of(listener)}"
    async with running(database_url, redis_url, smtp_url=url) as service:
        users = [await service.sign_up() for _ in range(3)]
        async with mailbox(listener) as box:
            await box.filled(3)
            mails = [await box.mail(user.email, "Welcome") for user in users]
            assert len(box.mails) == len(mails)
            dump = await dump_of(database_url)
    assert users[0].email in dump
    for token in map(token_of, mails):
        assert len(token) == 43
        assert token not in dump


async def dump_of(database_url: str) -> str:
    """Return every row of every table as text."""
    database = Database(database_url)
    async with database.reading() as connection:
        rows = [
            str(tuple(row))
            for table in metadata.sorted_tables
            for row in await connection.execute(sa.select(table))
        ]
    await database.close()
    return "\n".join(rows)
