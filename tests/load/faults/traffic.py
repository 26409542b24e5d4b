"""Closed-loop callers that read and write, and enter acknowledgements in a ledger."""

import asyncio
import random
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from blatam.auth.v1 import auth_pb2
from blatam.auth.v1.auth_pb2_grpc import AuthServiceStub
from blatam.post.v1 import post_pb2
from blatam.post.v1.post_pb2_grpc import PostServiceStub
from blatam.user.v1 import user_pb2
from blatam.user.v1.user_pb2_grpc import UserServiceStub
from tests.load.faults.ledger import Ledger
from tests.running import PASSWORD

Metadata = tuple[tuple[str, str], ...]
CALLERS = 120
PAUSE_SECONDS = 0.05  # of a caller between two calls
TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Result:
    """One call: when it began, how long it took, and its status."""

    method: str
    began: float
    seconds: float
    code: grpc.StatusCode
    details: str = ""

    @property
    def ok(self) -> bool:
        """Whether the call succeeded."""
        return self.code is grpc.StatusCode.OK

    @property
    def ended(self) -> float:
        """Return when the call ended, by time.monotonic()."""
        return self.began + self.seconds


@dataclass
class Member:
    """An account that one caller writes with, and its newest session."""

    id: int
    username: str
    tokens: auth_pb2.TokenPair

    @property
    def metadata(self) -> Metadata:
        """Return the metadata of the account's calls."""
        return (("authorization", f"Bearer {self.tokens.access_token}"),)


@dataclass
class Client:
    """Stubs of one channel; every call becomes a result."""

    channel: grpc.aio.Channel
    timeout: float = TIMEOUT_SECONDS
    results: list[Result] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.users = UserServiceStub(self.channel)
        self.auth = AuthServiceStub(self.channel)
        self.posts = PostServiceStub(self.channel)

    async def call(self, method: Any, request: Any, metadata: Metadata = ()) -> Any:
        """Return the response, None if the call failed."""
        began, code, details, response = time.monotonic(), grpc.StatusCode.OK, "", None
        try:
            response = await method(request, metadata=metadata, timeout=self.timeout)
        except grpc.aio.AioRpcError as error:
            code, details = error.code(), error.details() or ""
        if method is self.auth.Logout and code is grpc.StatusCode.UNAUTHENTICATED:
            # The response of an earlier attempt was lost: the session has ended.
            code, response = grpc.StatusCode.OK, auth_pb2.LogoutResponse()
        seconds, name = time.monotonic() - began, type(request).__name__
        name = name.removesuffix("Request")
        self.results.append(Result(name, began, seconds, code, details))
        return response

    @property
    def failures(self) -> list[Result]:
        """Return the calls that did not succeed."""
        return [result for result in self.results if not result.ok]

    def summary(self) -> str:
        """Return how many calls were made, and the failures by method and status."""
        kinds = Counter(f"{r.code.name} ({r.details[:60]})" for r in self.failures)
        described = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(3))
        return f"{len(self.results):,} calls{'; ' * bool(kinds)}{described}"


async def sign_up(client: Client, ledger: Ledger, name: str) -> Member:
    """Create an account with a session and enter both in the ledger."""
    request = user_pb2.CreateUserRequest(
        email=f"{name}@example.com",
        username=name,
        password=PASSWORD,
        request_id=str(uuid.uuid4()),
    )
    user = (await client.users.CreateUser(request)).user
    ledger.usernames[user.id] = user.username
    member = Member(user.id, name, auth_pb2.TokenPair())
    await log_in(client, ledger, member)
    return member


async def log_in(client: Client, ledger: Ledger, member: Member) -> bool:
    """Open a session, which becomes the member's; return whether it was answered."""
    request = auth_pb2.LoginRequest(identifier=member.username, password=PASSWORD)
    response = await client.call(client.auth.Login, request)
    if response is None:
        return False
    member.tokens = response.tokens
    ledger.open_sessions[member.tokens.session_id] = member.tokens.access_token
    return True


async def log_out(client: Client, ledger: Ledger, tokens: auth_pb2.TokenPair) -> None:
    """End a session."""
    ledger.open_sessions.pop(tokens.session_id, None)
    metadata = (("authorization", f"Bearer {tokens.access_token}"),)
    request = auth_pb2.LogoutRequest()
    if await client.call(client.auth.Logout, request, metadata) is not None:
        ledger.ended_sessions[tokens.session_id] = tokens.access_token


async def renew_session(client: Client, ledger: Ledger, member: Member) -> None:
    """Log in again, then end the session before."""
    before = member.tokens
    if await log_in(client, ledger, member):
        await log_out(client, ledger, before)


async def write_post(client: Client, ledger: Ledger, member: Member) -> None:
    """Write a post."""
    request = post_pb2.CreatePostRequest(
        title="On numbers", body="There are many.", request_id=str(uuid.uuid4())
    )
    response = await client.call(client.posts.CreatePost, request, member.metadata)
    if response is not None:
        ledger.posts[response.post.id] = response.post.title


async def rename(client: Client, ledger: Ledger, member: Member) -> None:
    """Give the account another username."""
    name = f"u{uuid.uuid4().hex[:16]}"
    request = user_pb2.UpdateUserRequest(
        user=user_pb2.User(id=member.id, username=name), request_id=str(uuid.uuid4())
    )
    request.update_mask.paths.append("username")
    ledger.usernames.pop(member.id, None)
    response = await client.call(client.users.UpdateUser, request, member.metadata)
    if response is not None:
        member.username = name
        ledger.usernames[member.id] = name


async def read_self(client: Client, ledger: Ledger, member: Member) -> None:
    """Read the caller's own account."""
    del ledger
    request = user_pb2.GetCurrentUserRequest()
    await client.call(client.users.GetCurrentUser, request, member.metadata)


async def list_posts(client: Client, ledger: Ledger, member: Member) -> None:
    """Read a page of posts, which needs Postgres."""
    del ledger
    request = post_pb2.ListPostsRequest(author_id=member.id)
    await client.call(client.posts.ListPosts, request, member.metadata)


def follow(others: Sequence[Member]) -> "Operation":
    """Return an operation that follows one of these accounts."""

    async def run(client: Client, ledger: Ledger, member: Member) -> None:
        followed = random.choice(others).id
        if followed == member.id or (member.id, followed) in ledger.follows:
            return
        request = user_pb2.FollowUserRequest(id=followed)
        response = await client.call(client.users.FollowUser, request, member.metadata)
        if response is not None:
            ledger.follows.add((member.id, followed))

    return run


Operation = Callable[[Client, Ledger, Member], Awaitable[object]]
READS: dict[Operation, float] = {read_self: 8, list_posts: 2}
WRITES: dict[Operation, float] = {write_post: 2, rename: 0.5, renew_session: 0.5}


@dataclass
class Traffic:
    """A number of members, and callers that call with them until they are stopped."""

    client: Client
    ledger: Ledger
    members: list[Member]
    operations: dict[Operation, float]
    pause: float = PAUSE_SECONDS
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Let each member call in a loop; a call that has begun is finished."""
        async with asyncio.TaskGroup() as group:
            for member in self.members:
                group.create_task(self._caller(member))

    async def _caller(self, member: Member) -> None:
        operations, weights = list(self.operations), list(self.operations.values())
        await asyncio.sleep(random.uniform(0, self.pause))
        while not self.stopping.is_set():
            (operation,) = random.choices(operations, weights)
            await operation(self.client, self.ledger, member)
            await asyncio.sleep(self.pause)


async def sign_up_members(
    client: Client, ledger: Ledger, prefix: str, count: int
) -> list[Member]:
    """Create accounts, a few at a time: the hashing pool refuses more."""
    slots = asyncio.Semaphore(4)

    async def create(number: int) -> Member:
        async with slots:
            return await sign_up(client, ledger, f"{prefix}_{number:03}")

    return await asyncio.gather(*(create(number) for number in range(count)))


@asynccontextmanager
async def calling(
    client: Client,
    ledger: Ledger,
    members: Sequence[Member],
    operations: dict[Operation, float] | None = None,
    pause: float = PAUSE_SECONDS,
) -> AsyncIterator[Traffic]:
    """Let the members call while the block runs."""
    operations = operations or {**READS, **WRITES, follow(members): 0.5}
    traffic = Traffic(client, ledger, list(members), operations, pause)
    task = asyncio.create_task(traffic.run())
    try:
        yield traffic
    finally:
        traffic.stopping.set()
        await task
