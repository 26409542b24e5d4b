"""Two releases over one database: the previous one serves on the schema of this one.

It is the schema that this release requires; what only the previous release uses is
removed after the rollout. A migration runs before the first process of its release
starts. Until the last process of the release before has ended, both serve, and each
works with what the other wrote.
"""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from blatam.auth.v1 import auth_pb2
from blatam.auth.v1.auth_pb2_grpc import AuthServiceStub
from blatam.post.v1 import post_pb2
from blatam.post.v1.post_pb2_grpc import PostServiceStub
from blatam.user.v1 import user_pb2
from blatam.user.v1.user_pb2_grpc import UserServiceStub
from server.domain.accounts.users import Role
from server.store import migrate
from server.store.connections.connect import Database
from tests.clients import Client, Grpc, Rest
from tests.conftest import Servers, key_space, run, url_of
from tests.load.service import LIFTED
from tests.previous_release import NoPreviousRelease, previous_release
from tests.processes import ROOT, serving
from tests.running import PASSWORD

SECONDS = 10
PUBLISHED = "POST_STATE_PUBLISHED"
PREVIOUS, PRESENT = "previous", "present"
OTHER = {PREVIOUS: PRESENT, PRESENT: PREVIOUS}
_names = (f"member{number}" for number in count(1))


@dataclass(frozen=True, slots=True)
class Running:
    """A process of one release."""

    channel: grpc.aio.Channel
    http: httpx.AsyncClient


@dataclass(frozen=True, slots=True)
class Releases:
    """A process of each release, and an administrator."""

    running: dict[str, Running]
    admin: str


@pytest.fixture(scope="module")
def packages() -> Path:
    """Return the folder of the previous release's packages."""
    try:
        return previous_release()
    except NoPreviousRelease as reason:
        pytest.skip(str(reason))


@pytest_asyncio.fixture(scope="module")
async def database_url(servers: Servers, admin: AsyncEngine) -> AsyncIterator[str]:
    """Return the URL of a database with the schema that this release requires."""
    name = f"required_{uuid.uuid4().hex[:8]}"
    await run(admin, f"create database {name}")
    url = url_of(servers, name)
    await migrate.upgrade(Database(url), migrate.required())
    yield url
    await run(admin, f"drop database {name} with (force)")


@pytest_asyncio.fixture(scope="module")
async def releases(
    packages: Path, servers: Servers, database_url: str
) -> AsyncIterator[Releases]:
    folders = {PREVIOUS: packages, PRESENT: ROOT}
    async with AsyncExitStack() as stack:
        env = {
            "DATABASE_URL": database_url,
            "REDIS_URL": key_space(servers, 4),
            "SECRET_KEY": "0123456789abcdef" * 4,
            "RATE_LIMITS": json.dumps(LIFTED),
        }

        async def start(folder: Path) -> Running:
            process = await stack.enter_async_context(serving(env, cwd=folder))
            http = httpx.AsyncClient(base_url=process.rest, timeout=SECONDS)
            return Running(process.channel, await stack.enter_async_context(http))

        started = await asyncio.gather(*map(start, folders.values()))
        running = dict(zip(folders, started, strict=True))
        yield Releases(running, await administrator(running[PREVIOUS], database_url))


async def administrator(process: Running, database_url: str) -> str:
    """Return the access token of an administrator."""
    user, _ = await member(Grpc(process), Grpc(process))
    database = Database(database_url)
    async with database.transaction() as connection:
        statement = sa.text("update users set role = :role where id = :id")
        values = {"role": int(Role.ADMIN), "id": int(user["id"])}
        await connection.execute(statement, values)
    await database.close()
    return await log_in(Grpc(process), user)


async def body(client: Client, rpc: str, token: str = "", /, **fields: Any) -> Any:
    """Make a call that succeeds, and return its JSON body."""
    answer = await client.call(rpc, token, **fields)
    assert answer.status == "OK", (rpc, answer)
    return answer.body


async def log_in(client: Client, user: Any) -> str:
    tokens = await body(client, "Login", identifier=user["email"], password=PASSWORD)
    return str(tokens["accessToken"])


async def member(one: Client, other: Client) -> tuple[Any, str]:
    """Sign up at one process; log in at another. Return the account and a token."""
    name = next(_names)
    signup = {"email": f"{name}@x.co", "username": name, "password": PASSWORD}
    user = await body(one, "CreateUser", **signup)
    return user, await log_in(other, user)


@pytest.mark.parametrize("release", OTHER)
async def test_each_release_works_with_what_the_other_writes(
    releases: Releases, release: str
) -> None:
    one, other = Grpc(releases.running[release]), Rest(releases.running[OTHER[release]])
    user, token = await member(one, other)
    friend, _ = await member(other, one)
    assert (await body(one, "GetCurrentUser", token))["id"] == user["id"]
    await body(one, "CreateUserProfile", token, display_name="Ana")
    changes = {"user_id": user["id"], "bio": "Mathematician."}
    await body(other, "UpdateUserProfile", token, **changes)
    profile = await body(one, "GetUserProfile", token, user_id=user["id"])
    assert (profile["displayName"], profile["bio"]) == ("Ana", "Mathematician.")
    await body(other, "UpdateUserSettings", token, theme="THEME_DARK")
    assert (await body(one, "GetUserSettings", token))["theme"] == "THEME_DARK"
    await body(one, "FollowUser", token, id=friend["id"])
    followed = await body(other, "ListFollowing", token, id=user["id"])
    assert len(followed["items"]) == 1
    await body(other, "GetUserOverview", token, id=friend["id"])
    await body(one, "GetUserScore", token, id=friend["id"])
    await body(other, "UnfollowUser", token, id=friend["id"])
    await write_posts(one, other, releases.admin, token)
    assert (await body(one, "ListUsers", token))["total"] > 1
    await body(one, "DeleteUser", token, id=user["id"])


async def write_posts(one: Client, other: Client, admin: str, token: str) -> None:
    slug = f"category-{next(_names)}"
    category = await body(one, "CreateCategory", admin, slug=slug, name="Numbers")
    text = {"title": "On numbers", "body": "Many.", "state": PUBLISHED}
    post = await body(other, "CreatePost", token, category_id=category["id"], **text)
    await body(one, "UpdatePost", token, id=post["id"], title="On primes")
    read = await body(other, "GetPost", token, id=post["id"])
    assert (read["title"], read["categoryId"]) == ("On primes", category["id"])
    page = await body(one, "ListPosts", token, category_id=category["id"])
    assert [item["id"] for item in page["items"]] == [post["id"]]
    await body(other, "DeletePost", token, id=post["id"])
    await body(one, "ListCategories", token)


@pytest.mark.parametrize("release", OTHER)
async def test_sessions_of_one_release_are_those_of_the_other(
    releases: Releases, release: str
) -> None:
    one, other = releases.running[release], releases.running[OTHER[release]]
    user, _ = await member(Grpc(one), Grpc(other))
    login = auth_pb2.LoginRequest(identifier=user["email"], password=PASSWORD)
    first = (await AuthServiceStub(one.channel).Login(login)).tokens
    refresh = auth_pb2.RefreshTokenRequest(refresh_token=first.refresh_token)
    second = (await AuthServiceStub(other.channel).RefreshToken(refresh)).tokens
    metadata = (("authorization", f"Bearer {second.access_token}"),)
    stream: Any = AuthServiceStub(other.channel).WatchRevocations(
        auth_pb2.WatchRevocationsRequest(),
        metadata=(("authorization", f"Bearer {releases.admin}"),),
    )
    async with asyncio.timeout(SECONDS):
        await stream.read()
        log_out = auth_pb2.LogoutRequest()
        await AuthServiceStub(one.channel).Logout(log_out, metadata=metadata)
        session = ""
        while session != first.session_id:
            session = (await stream.read()).revocation.session_id
        stream.cancel()
        status = "OK"
        while status == "OK":
            answer = await Rest(other).call("GetCurrentUser", second.access_token)
            status = answer.status
    assert status == "UNAUTHENTICATED"


@pytest.mark.parametrize("release", OTHER)
async def test_streams_of_one_release_have_the_changes_of_the_other(
    releases: Releases, release: str
) -> None:
    one, other = releases.running[release], releases.running[OTHER[release]]
    admin = (("authorization", f"Bearer {releases.admin}"),)
    users = UserServiceStub(other.channel)
    stream: Any = users.WatchUsers(user_pb2.WatchUsersRequest(), metadata=admin)
    async with asyncio.timeout(SECONDS):
        await stream.read()
        user, token = await member(Grpc(one), Grpc(other))
        while int(user["id"]) != (await stream.read()).created.id:
            pass
        edit = user_pb2.UpdateUserRequest(
            user=user_pb2.User(id=int(user["id"]), username=next(_names))
        )
        edit.update_mask.paths.append("username")
        metadata = (("authorization", f"Bearer {token}"),)
        await UserServiceStub(one.channel).UpdateUser(edit, metadata=metadata)
        while edit.user.username != (await stream.read()).updated.username:
            pass
        stream.cancel()
        export = users.ExportUsers(user_pb2.ExportUsersRequest(), metadata=admin)
        assert int(user["id"]) in [each.user.id async for each in export]
        own = user_pb2.ExportUserRequest(id=int(user["id"]))
        assert [each async for each in users.ExportUser(own, metadata=metadata)]
        text = {"title": "On numbers", "body": "Many.", "state": PUBLISHED}
        post = await body(Grpc(one), "CreatePost", token, **text)
        exported = PostServiceStub(other.channel).ExportPosts(
            post_pb2.ExportPostsRequest(), metadata=admin
        )
        assert int(post["id"]) in [each.post.id async for each in exported]
        audit = await AuthServiceStub(other.channel).ListAuditEvents(
            auth_pb2.ListAuditEventsRequest(), metadata=admin
        )
        assert audit.items


@pytest.mark.parametrize("release", OTHER)
async def test_service_key_of_one_release_is_soon_valid_at_the_other(
    releases: Releases, release: str
) -> None:
    one, other = releases.running[release], releases.running[OTHER[release]]
    admin = (("authorization", f"Bearer {releases.admin}"),)
    request = auth_pb2.CreateServiceKeyRequest(name="billing")
    made = await AuthServiceStub(one.channel).CreateServiceKey(request, metadata=admin)
    async with asyncio.timeout(SECONDS):
        status = ""
        while status != "OK":
            answer = await Grpc(other).call("ListUsers", made.secret)
            status = answer.status


async def test_request_repeated_at_the_other_release_has_one_effect(
    releases: Releases,
) -> None:
    name = next(_names)
    request = user_pb2.CreateUserRequest(
        email=f"{name}@x.co",
        username=name,
        password=PASSWORD,
        request_id=str(uuid.uuid4()),
    )
    answers = [
        await UserServiceStub(process.channel).CreateUser(request)
        for process in releases.running.values()
    ]
    assert answers[0].user == answers[1].user
