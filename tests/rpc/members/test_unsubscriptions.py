"""One-click unsubscription (RFC 8058), as mail providers do it."""

from collections.abc import AsyncIterator
from email.message import EmailMessage
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from sqlalchemy.ext.asyncio import AsyncEngine

from blatam.user.v1 import settings_pb2 as pb
from blatam.user.v1 import user_pb2
from tests.conftest import Servers, fresh_database, key_space, ready
from tests.running import RunningService, SignedInUser, running
from tests.status import expect_rpc_error

FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=x"
ONE_CLICK = b"List-Unsubscribe=One-Click"
PART = b'--x\r\nContent-Disposition: form-data; name="List-Unsubscribe"\r\n\r\n'


@pytest_asyncio.fixture(scope="module")
async def shared(
    servers: Servers, admin: AsyncEngine, template: str
) -> AsyncIterator[RunningService]:
    """Return a service with an https PUBLIC_URL, which the headers need."""
    async with (
        fresh_database(servers, admin, template) as url,
        running(
            url, key_space(servers, 4), public_url="https://academy.test"
        ) as started,
    ):
        await ready(started)
        yield started


async def member(service: RunningService) -> SignedInUser:
    """Return a member who wants e-mail of posts and followers."""
    who = await service.signed_in()
    settings = {"notifications": {"followedPosts": True, "newFollowers": True}}
    await service.http.put("/api/v1/user-settings", json=settings, headers=who.headers)
    return who


async def settings_of(service: RunningService, who: SignedInUser) -> pb.UserSettings:
    request = pb.GetUserSettingsRequest()
    answer = await service.users.GetUserSettings(request, metadata=who.metadata)
    return answer.settings


async def follow(
    service: RunningService, who: SignedInUser, whom: SignedInUser
) -> None:
    request = user_pb2.FollowUserRequest(id=whom.user.id)
    await service.users.FollowUser(request, metadata=who.metadata)


async def follower_mail(service: RunningService, who: SignedInUser) -> EmailMessage:
    await follow(service, await service.signed_in(), who)
    return await service.mailbox.mail(who.user.email, "Someone follows you")


def unsubscribe_path(mail: EmailMessage) -> str:
    """Return the path of the URL in an e-mail's header."""
    assert mail["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    url = urlsplit(mail["List-Unsubscribe"].removeprefix("<").removesuffix(">"))
    assert (url.scheme, url.netloc, url.query) == ("https", "academy.test", "")
    return str(url.path)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [(FORM, ONE_CLICK), (MULTIPART, PART + b"One-Click\r\n--x--\r\n"), (None, b"")],
)
async def test_unsubscribe_link_turns_off_its_kind_of_mail(
    shared: RunningService, content_type: str | None, body: bytes
) -> None:
    """A POST without a log-in, in each encoding of the RFC; the rest stays on."""
    ana = await member(shared)
    path = unsubscribe_path(await follower_mail(shared, ana))
    before = await settings_of(shared, ana)
    headers = {"content-type": content_type} if content_type else {}
    answer = await shared.http.post(path, content=body, headers=headers)
    assert (answer.status_code, answer.content) == (204, b"")
    after = await settings_of(shared, ana)
    assert after.notifications == pb.NotificationSettings(followed_posts=True)
    assert after.etag != before.etag
    again = await shared.http.post(path, content=body, headers=headers)
    assert again.status_code == 204
    assert await settings_of(shared, ana) == after


async def test_unsubscribed_member_gets_no_more_mail(shared: RunningService) -> None:
    """Over gRPC as over REST; later followers send no e-mail of that kind."""
    ana = await member(shared)
    path = unsubscribe_path(await follower_mail(shared, ana))
    token = path.rpartition("/")[2]
    await shared.users.Unsubscribe(pb.UnsubscribeRequest(token=token))
    bea = await shared.signed_in()
    await follow(shared, bea, ana)
    await follow(shared, ana, bea)
    post = {"title": "On numbers", "body": "Many."}
    await shared.http.post("/api/v1/posts", json=post, headers=bea.headers)
    news = await shared.mailbox.mail(ana.user.email, "you follow has posted")
    assert unsubscribe_path(news) != path
    assert shared.mailbox.subjects(ana.user.email).count("Someone follows you") == 1


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
async def test_unsubscribe_link_needs_a_post(
    shared: RunningService, method: str
) -> None:
    """Link checkers and prefetching browsers send GET, which changes nothing."""
    ana = await member(shared)
    path = unsubscribe_path(await follower_mail(shared, ana))
    before = await settings_of(shared, ana)
    answer = await shared.http.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert await settings_of(shared, ana) == before


async def test_unsubscribe_token_cannot_be_forged(shared: RunningService) -> None:
    """A changed, cut or foreign token is refused on both transports."""
    ana = await member(shared)
    mail = await follower_mail(shared, ana)
    path, _, token = unsubscribe_path(mail).rpartition("/")
    before = await settings_of(shared, ana)
    last = "A" if token[-1] != "A" else "B"
    for forged in (token[:-1] + last, token[:-4], "x", ana.tokens.access_token[:64]):
        request = pb.UnsubscribeRequest(token=forged)
        error = await expect_rpc_error(shared.users.Unsubscribe(request))
        assert error.reason == "MAILED_TOKEN_INVALID"
        answer = await shared.http.post(f"{path}/{forged}", content=ONE_CLICK)
        assert answer.status_code == 400
        assert answer.json()["errorCode"] == "MAILED_TOKEN_INVALID"
    assert await settings_of(shared, ana) == before


async def test_other_mails_have_no_unsubscribe_header(shared: RunningService) -> None:
    """Mails of the account cannot be turned off."""
    ana = await shared.sign_up()
    welcome = await shared.mailbox.mail(ana.email, "Welcome")
    assert welcome["List-Unsubscribe"] is None
    assert welcome["List-Unsubscribe-Post"] is None
