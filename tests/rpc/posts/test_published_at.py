"""Posts are listed by the time of their publication, over gRPC and REST alike."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from server.domain.accounts.users import Role
from server.store.connections.connect import Database
from tests.clients import Client, Grpc, Rest
from tests.running import RunningService, SignedInUser

DRAFT, PUBLISHED = "POST_STATE_DRAFT", "POST_STATE_PUBLISHED"
TEXT = {"title": "On numbers", "body": "Many."}


@pytest.fixture(params=[Grpc, Rest])
def client(request: pytest.FixtureRequest, service: RunningService) -> Client:
    make: Callable[[RunningService], Client] = request.param
    return make(service)


async def body(client: Client, caller: SignedInUser, rpc: str, **fields: Any) -> Any:
    """Make a call that succeeds, and return its JSON body."""
    answer = await client.call(rpc, caller.tokens.access_token, **fields)
    assert answer.status == "OK", answer
    return answer.body


async def listed_ids(client: Client, caller: SignedInUser, **fields: Any) -> list[str]:
    page = await body(client, caller, "ListPosts", **fields)
    return [post["id"] for post in page["items"]]


async def draft_of_last_month(
    client: Client, author: SignedInUser, database_url: str
) -> str:
    """Create a draft that was begun 30 days ago, and return its id."""
    post = await body(client, author, "CreatePost", state=DRAFT, **TEXT)
    assert post.get("publishedAt") is None
    database = Database(database_url)
    statement = sa.text(
        "update posts set created_at = created_at - interval '30 days',"
        " updated_at = updated_at - interval '30 days' where id = :id"
    )
    async with database.transaction() as connection:
        await connection.execute(statement, {"id": int(post["id"])})
    await database.close()
    post_id: str = post["id"]
    return post_id


def text_of(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


async def test_published_draft_is_listed_first(
    service: RunningService, client: Client, database_url: str
) -> None:
    """It is among the new posts for readers, however long ago it was begun."""
    ana, bea = await service.signed_in(), await service.signed_in()
    draft = await draft_of_last_month(client, ana, database_url)
    other = (await body(client, ana, "CreatePost", **TEXT))["id"]
    before = datetime.now(UTC)
    published = await body(client, ana, "UpdatePost", id=draft, state=PUBLISHED)
    assert datetime.fromisoformat(published["publishedAt"]) >= before
    assert published["publishedAt"] == published["updatedAt"]
    yesterday = text_of(before - timedelta(days=1))
    for fields, expected in (
        ({}, [draft, other]),
        ({"sort_by": "-published_at"}, [draft, other]),
        ({"sort_by": "published_at"}, [other, draft]),
        ({"sort_by": "-created_at"}, [other, draft]),
        ({"author_id": ana.user.id}, [draft, other]),
        ({"since": yesterday}, [draft, other]),
        ({"until": yesterday}, []),
        ({"since": text_of(before)}, [draft]),
    ):
        assert await listed_ids(client, bea, **fields) == expected, fields
    overview = await body(client, bea, "GetUserOverview", id=ana.user.id)
    assert [post["id"] for post in overview["posts"]] == [draft, other]


async def test_published_posts_have_the_time_of_their_creation(
    service: RunningService, client: Client
) -> None:
    ana = await service.signed_in()
    post = await body(client, ana, "CreatePost", **TEXT)
    assert post["publishedAt"] == post["createdAt"]
    edited = await body(client, ana, "UpdatePost", id=post["id"], title="Other")
    assert edited["publishedAt"] == post["publishedAt"]


async def test_published_again_keeps_the_first_publication(
    service: RunningService, client: Client
) -> None:
    """Withdrawing and publishing again does not bring a post to the top."""
    ana = await service.signed_in()
    first = await body(client, ana, "CreatePost", **TEXT)
    second = await body(client, ana, "CreatePost", **TEXT)
    for state in (DRAFT, PUBLISHED):
        await body(client, ana, "UpdatePost", id=first["id"], state=state)
    assert await listed_ids(client, ana) == [second["id"], first["id"]]
    again = await body(client, ana, "GetPost", id=first["id"])
    assert again["publishedAt"] == first["publishedAt"]


async def test_drafts_are_listed_by_their_creation(
    service: RunningService, client: Client, database_url: str
) -> None:
    """Among the author's published posts, page by page and by `since`."""
    ana, root = await service.signed_in(), await service.signed_in(Role.ADMIN)
    draft = await draft_of_last_month(client, ana, database_url)
    post = (await body(client, ana, "CreatePost", **TEXT))["id"]
    newer = (await body(client, ana, "CreatePost", state=DRAFT, **TEXT))["id"]
    yesterday = text_of(datetime.now(UTC) - timedelta(days=1))
    for caller in (ana, root):
        assert await listed_ids(client, caller) == [newer, post, draft]
        assert await listed_ids(client, caller, since=yesterday) == [newer, post]
        assert await listed_ids(client, caller, until=yesterday) == [draft]
    for sort_by, expected in (("", [newer, post, draft]),
                              ("published_at", [draft, post, newer])):  # fmt: skip
        ids: list[str] = []
        token = ""
        while not ids or token:
            fields = {"page_size": 1, "sort_by": sort_by, "page_token": token}
            page = await body(client, ana, "ListPosts", **fields)
            ids += [item["id"] for item in page["items"]]
            token = page["nextPageToken"]
        assert ids == expected


async def test_followers_are_mailed_when_a_draft_is_published(
    service: RunningService, client: Client, database_url: str
) -> None:
    """Also those who followed after the draft was begun."""
    ana, bea = await service.signed_in(), await service.signed_in()
    draft = await draft_of_last_month(client, ana, database_url)
    settings = {"notifications": {"followedPosts": True}}
    await body(client, bea, "UpdateUserSettings", **settings)
    await body(client, bea, "FollowUser", id=ana.user.id)
    await body(client, ana, "UpdatePost", id=draft, state=PUBLISHED)
    mail = await service.mailbox.mail(bea.user.email, "Someone you follow has posted")
    assert f"{ana.user.username}: On numbers" in mail.get_content()


async def test_posts_of_an_older_release_get_their_publication(
    service: RunningService, client: Client, database_url: str
) -> None:
    """A release that does not know the column runs beside this one."""
    ana = await service.signed_in()
    database = Database(database_url)
    async with database.transaction() as connection:
        for statement in (
            "insert into posts (user_id, title, body, state, created_at, updated_at)"
            " values (:id, 'published', 'x', 2, now(), now()),"
            " (:id, 'draft', 'x', 1, now() - interval '1 day', now())",
            "update posts set state = 2, updated_at = now() + interval '1 s'"
            " where title = 'draft' and user_id = :id",
        ):
            await connection.execute(sa.text(statement), {"id": ana.user.id})
    await database.close()
    page = await body(client, ana, "ListPosts")
    assert [post["title"] for post in page["items"]] == ["draft", "published"]
    draft, published = page["items"]
    assert draft["publishedAt"] == draft["updatedAt"]
    assert published["publishedAt"] == published["createdAt"]
