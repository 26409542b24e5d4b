"""The whole application in this process: a gRPC listener, and the edge."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import Any

import grpc
import httpx
from fastapi import FastAPI

from blatam.auth.v1 import auth_pb2
from blatam.auth.v1.auth_pb2_grpc import AuthServiceStub
from blatam.post.v1.post_pb2_grpc import PostServiceStub
from blatam.user.v1 import user_pb2
from blatam.user.v1.user_pb2_grpc import UserServiceStub
from edge.port import CallPort
from server.composition.application import build_application
from server.composition.listeners.serving import listening_grpc
from server.composition.resources import open_resources
from server.config import Settings, load
from server.domain.accounts.users import Role, UserEdit
from server.observability.tracing.tracing import Tracing
from server.store.accounts.users import PostgresUsers
from tests.environments import through_pooler
from tests.mailbox import Mailbox, mailbox
from tests.metrics import Scrape

PASSWORD = "Blue7horse"
SECRET = "0123456789abcdef" * 4
NO_LIMITS: dict[str, list[object]] = {
    "blatam.user.v1.UserService/CreateUser": [],
    "blatam.auth.v1.AuthService/Login": [],
    "blatam.auth.v1.AuthService/RefreshToken": [],
    "blatam.auth.v1.AuthService/Logout": [],
    "blatam.auth.v1.AuthService/RequestPasswordReset": [],
    "blatam.auth.v1.AuthService/ResetPassword": [],
    "blatam.auth.v1.AuthService/RequestEmailVerification": [],
    "blatam.auth.v1.AuthService/VerifyEmail": [],
    "blatam.auth.v1.AuthService/ChangeEmail": [],
    "blatam.auth.v1.AuthService/CompleteLogin": [],
    "blatam.auth.v1.AuthService/Reauthenticate": [],
    "blatam.auth.v1.AuthService/BeginPasskeyLogin": [],
    "blatam.auth.v1.AuthService/CompletePasskeyLogin": [],
    "blatam.auth.v1.AuthService/RequestLoginCode": [],
    "blatam.auth.v1.AuthService/LoginWithCode": [],
    "blatam.auth.v1.AuthService/BeginFederatedLogin": [],
    "blatam.auth.v1.AuthService/CompleteFederatedLogin": [],
}
_numbers = count(1)


@dataclass(frozen=True, slots=True)
class RunningService:
    """A running application: by gRPC, by REST, and in process (`app`, `port`)."""

    channel: grpc.aio.Channel
    address: str
    http: httpx.AsyncClient
    app: FastAPI
    port: CallPort
    accounts: PostgresUsers
    mailbox: Mailbox
    drain: Callable[[], Awaitable[None]]
    render_metrics: Callable[[], Awaitable[bytes]]
    users: UserServiceStub = field(init=False)
    auth: AuthServiceStub = field(init=False)
    posts: PostServiceStub = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "users", UserServiceStub(self.channel))
        object.__setattr__(self, "auth", AuthServiceStub(self.channel))
        object.__setattr__(self, "posts", PostServiceStub(self.channel))

    async def scrape(self) -> Scrape:
        """Return the metrics."""
        return Scrape(await self.render_metrics())

    async def sign_up(self, username: str = "") -> user_pb2.User:
        """Create an account with PASSWORD."""
        username = username or f"user{next(_numbers)}"
        request = user_pb2.CreateUserRequest(
            email=f"{username}@example.com", username=username, password=PASSWORD
        )
        return (await self.users.CreateUser(request)).user

    async def log_in(self, identifier: str) -> auth_pb2.TokenPair:
        """Open a session with PASSWORD."""
        request = auth_pb2.LoginRequest(identifier=identifier, password=PASSWORD)
        return (await self.auth.Login(request)).tokens

    async def signed_in(self, role: Role = Role.STUDENT) -> "SignedInUser":
        """Return a new account with a session."""
        username = f"user{next(_numbers)}"
        user = await self.sign_up(username)
        if role is not Role.STUDENT:
            now = datetime.now(UTC)
            await self.accounts.edit(user.id, UserEdit({"role": role}, "", now))
        return SignedInUser(user, await self.log_in(username))


@dataclass(frozen=True, slots=True)
class SignedInUser:
    """An account with a session."""

    user: user_pb2.User
    tokens: auth_pb2.TokenPair

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata of the account's gRPC calls."""
        return (("authorization", f"Bearer {self.tokens.access_token}"),)

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers of the account's HTTP requests."""
        return dict(self.metadata)


@asynccontextmanager
async def running(
    database_url: str,
    redis_url: str,
    *,
    tracing: Tracing | None = None,
    **settings: Any,
) -> AsyncIterator[RunningService]:
    """Start the application on these stores, without rate limits by default."""
    values = {
        "secret_key": SECRET,
        "rate_limits": NO_LIMITS,
        "debug": True,
        **settings,
    }
    async with (
        mailbox() as box,
        open_resources(
            _settings(database_url, redis_url, box, values), tracing=tracing
        ) as resources,
        build_application(resources) as application,
        listening_grpc(application.grpc, "127.0.0.1:0") as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        httpx.AsyncClient(
            transport=httpx.ASGITransport(application.http, client=("192.0.2.7", 4711)),
            base_url="http://academy.test",
        ) as http,
    ):
        accounts = PostgresUsers(resources.database, resources.feed)
        yield RunningService(
            channel,
            f"127.0.0.1:{port}",
            http,
            application.http,
            application.port,
            accounts,
            box,
            application.drain,
            application.render_metrics,
        )


def _settings(
    database_url: str, redis_url: str, box: Mailbox, values: Mapping[str, Any]
) -> Settings:
    stores = through_pooler({"DATABASE_URL": database_url, "REDIS_URL": redis_url})
    defaults = {name.lower(): value for name, value in stores.items()}
    return load(**{**defaults, "smtp_url": box.url, **values})
