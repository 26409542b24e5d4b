"""Journeys of two members and an admin, over REST and gRPC alike."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest

from server.domain.accounts.users import Role
from tests.clients import Answer, Client, Grpc, Rest
from tests.running import RunningService, SignedInUser


@dataclass(frozen=True, slots=True)
class ClientUser:
    """A signed-in user of one transport."""

    client: Client
    id: str
    token: str

    async def __call__(self, name: str, /, **fields: Any) -> Any:
        """Make a call that succeeds, and return its body."""
        answer = await self.client.call(name, self.token, **fields)
        assert answer.status == "OK", answer
        return answer.body

    async def refused(self, name: str, /, **fields: Any) -> str:
        """Make a call that is refused, and return the reason."""
        answer: Answer = await self.client.call(name, self.token, **fields)
        assert answer.status != "OK"
        return answer.reason


@dataclass(frozen=True, slots=True)
class Participants:
    """Two members and an admin."""

    ana: ClientUser
    bea: ClientUser
    root: ClientUser


@pytest.fixture(params=[Rest, Grpc])
def client(request: pytest.FixtureRequest, shared: RunningService) -> Client:
    make: Callable[[RunningService], Client] = request.param
    return make(shared)


async def participants(shared: RunningService, client: Client) -> Participants:
    def member(signed_in: SignedInUser) -> ClientUser:
        token = signed_in.tokens.access_token
        return ClientUser(client, str(signed_in.user.id), token)

    ana, bea = await shared.signed_in(), await shared.signed_in()
    root = await shared.signed_in(Role.ADMIN)
    return Participants(member(ana), member(bea), member(root))


async def test_two_members_see_each_others_changes(
    shared: RunningService, client: Client
) -> None:
    """Each step is visible to the other member, also on a second read (from caches)."""
    people = await participants(shared, client)
    ana, bea = people.ana, people.bea
    await create_profiles(ana, bea)
    await follow_each_other(ana, bea)
    category = await people.root("CreateCategory", slug=f"c-{uuid4()}", name="Numbers")
    post = await ana(
        "CreatePost", title="On numbers", body="Many.", category_id=category["id"]
    )
    await read_the_post(bea, ana.id, post, category)
    await change_the_post(ana, bea, post)
    await bea("UnfollowUser", id=ana.id)
    for _ in range(2):
        assert (await bea("ListFollowers", id=ana.id))["items"] == []
        assert (await bea("GetUserOverview", id=ana.id))["followers"] == []
    await ana("DeleteUser", id=ana.id)
    await check_nothing_is_found(bea, ana.id, post, category)
    assert await people.root.refused("DeleteCategory", id=category["id"]) == (
        "CATEGORY_IN_USE"  # the account may be restored
    )


async def create_profiles(ana: ClientUser, bea: ClientUser) -> None:
    profile = await ana("CreateUserProfile", display_name="Ana", locale="es")
    await bea("CreateUserProfile", user_id=bea.id, display_name="Bea")
    assert await bea("GetUserProfile", user_id=ana.id) == profile
    await ana("UpdateUserProfile", user_id=ana.id, bio="Reads.")
    for _ in range(2):
        assert (await bea("GetUserProfile", user_id=ana.id))["bio"] == "Reads."
    private = {"profile_visibility": "PROFILE_VISIBILITY_PRIVATE"}
    await ana("UpdateUserSettings", **private)
    assert await bea.refused("GetUserProfile", user_id=ana.id) == "PROFILE_NOT_FOUND"
    assert (await ana("GetUserProfile", user_id=ana.id))["bio"] == "Reads."
    await ana("UpdateUserSettings", theme="THEME_DARK")
    assert (await ana("GetUserSettings"))["theme"] == "THEME_DARK"
    assert (await bea("GetUserProfile", user_id=ana.id))["displayName"] == "Ana"


async def follow_each_other(ana: ClientUser, bea: ClientUser) -> None:
    before = (await bea("GetUserScore", id=ana.id))["score"]
    for _ in range(2):
        await bea("FollowUser", id=ana.id)
        listed = await bea("ListFollowers", id=ana.id)
        assert [user["id"] for user in listed["items"]] == [bea.id]
        assert listed["total"] == 1
    listed = await ana("ListFollowing", id=bea.id)
    assert [user["id"] for user in listed["items"]] == [ana.id]
    assert await ana.refused("FollowUser", id=ana.id) == "SELF_FOLLOW"
    assert (await bea("GetUserScore", id=ana.id))["score"] > before


async def read_the_post(
    bea: ClientUser, ana_id: str, post: dict[str, Any], category: dict[str, Any]
) -> None:
    for _ in range(2):
        assert await bea("GetPost", id=post["id"]) == post
        for fields in ({"author_id": ana_id}, {"category_id": category["id"]}):
            (item,) = (await bea("ListPosts", **fields))["items"]
            assert item == post | {"body": ""}
        overview = await bea("GetUserOverview", id=ana_id)
        assert overview["user"]["id"] == ana_id
        assert [item["id"] for item in overview["posts"]] == [post["id"]]
        assert [user["id"] for user in overview["followers"]] == [bea.id]
        assert (overview["postCount"], overview["followerCount"]) == (1, 1)
        assert overview["missing"] == []
    weights = {"weights.posts": 0.5, "weights.followers": 0.5}
    scored = await bea("GetUserScore", id=ana_id, **weights)
    assert scored["score"] == pytest.approx(100 * (0.5 / 21 + 0.5 / 51))
    wrong = {"weights.posts": 0.5}
    assert await bea.refused("GetUserScore", id=ana_id, **wrong) == "INVALID_FIELDS"


async def change_the_post(
    ana: ClientUser, bea: ClientUser, post: dict[str, Any]
) -> None:
    assert await bea.refused("UpdatePost", id=post["id"], title="x") == "ACCESS_DENIED"
    changed = await ana("UpdatePost", id=post["id"], title="On more numbers")
    for _ in range(2):
        assert await bea("GetPost", id=post["id"]) == changed
    stale = {"id": post["id"], "title": "x", "etag": post["etag"]}
    assert await ana.refused("UpdatePost", **stale) == "ETAG_MISMATCH"
    draft = await ana("CreatePost", title="x", body="y", state="POST_STATE_DRAFT")
    assert await bea.refused("GetPost", id=draft["id"]) == "POST_NOT_FOUND"
    await ana("DeletePost", id=draft["id"])
    assert await ana.refused("GetPost", id=draft["id"]) == "POST_NOT_FOUND"


async def check_nothing_is_found(
    bea: ClientUser, ana_id: str, post: dict[str, Any], category: dict[str, Any]
) -> None:
    for name in ("GetUser", "GetUserOverview", "GetUserScore", "ListFollowers"):
        assert await bea.refused(name, id=ana_id) == "USER_NOT_FOUND"
    assert await bea.refused("GetUserProfile", user_id=ana_id) == "PROFILE_NOT_FOUND"
    assert await bea.refused("GetPost", id=post["id"]) == "POST_NOT_FOUND"
    assert (await bea("ListPosts", category_id=category["id"]))["items"] == []
    assert (await bea("ListFollowing", id=bea.id))["items"] == []


async def test_members_get_the_mails_they_ask_for(shared: RunningService) -> None:
    """About followers and posts, from the write to the delivered e-mail."""
    ana, bea = await shared.signed_in(), await shared.signed_in()
    settings = {"notifications": {"followedPosts": True, "newFollowers": True}}
    for user in (ana, bea):
        await shared.http.put(
            "/api/v1/user-settings", json=settings, headers=user.headers
        )
    path = f"/api/v1/users/{ana.user.id}/follow"
    await shared.http.put(path, headers=bea.headers)
    mail = await shared.mailbox.mail(ana.user.email, "Someone follows you")
    assert f"{bea.user.username} follows you" in mail.get_content()
    post = {"title": "On numbers", "body": "Many."}
    await shared.http.post("/api/v1/posts", json=post, headers=ana.headers)
    mail = await shared.mailbox.mail(bea.user.email, "Someone you follow has posted")
    assert f"{ana.user.username}: On numbers" in mail.get_content()
    assert "Someone you follow has posted" not in shared.mailbox.subjects(
        ana.user.email
    )


REQUESTS = [
    ("post", "/api/v1/user-profiles", {"displayName": ""}, "displayName"),
    ("post", "/api/v1/user-profiles", {"displayName": "A", "age": 5}, "age"),
    ("patch", "/api/v1/user-profiles/{id}", {"locale": "-"}, "profile.locale"),
    ("put", "/api/v1/user-settings", {"theme": "PINK"}, "settings.theme"),
    (
        "put",
        "/api/v1/user-settings",
        {"notifications": {"digest": "yes"}},
        "settings.notifications.digest",
    ),
    ("put", "/api/v1/users/0/follow", {}, "id"),
    ("get", "/api/v1/users/{id}/followers?page=0", None, "page"),
    ("get", "/api/v1/users/{id}/followers?sort_by=id", None, "sortBy"),
    ("get", "/api/v1/users/{id}/score?weights.posts=2", None, "weights.posts"),
    ("get", "/api/v1/users/{id}/score?weights.posts=NaN", None, "weights.posts"),
    ("get", "/api/v1/users/{id}/score?weights.posts=1e999", None, "weights.posts"),
    ("get", "/api/v1/users/{id}/score?weights.luck=1", None, "weights.luck"),
    ("get", "/api/v1/users/{id}/score?weights.posts=0.5", None, "weights"),
    ("post", "/api/v1/posts", {"title": "", "body": "x"}, "title"),
    ("post", "/api/v1/posts", {"title": "x", "body": 5}, "body"),
    ("post", "/api/v1/posts", {"title": "x", "body": "y", "state": "X"}, "state"),
    ("post", "/api/v1/posts", {"title": "x", "body": "y", "authorId": 1}, "authorId"),
    ("get", "/api/v1/posts?category_id=x", None, "categoryId"),
    ("get", "/api/v1/posts?since=yesterday", None, "since"),
    ("get", "/api/v1/users/{id}/posts?author_id=9", None, "authorId"),
]


@pytest.mark.parametrize(("method", "path", "body", "field"), REQUESTS)
async def test_invalid_input_names_the_field(
    shared: RunningService, method: str, path: str, body: object, field: str
) -> None:
    """R32: 400 with the field's name; nothing is written."""
    ana = await shared.signed_in()
    await shared.http.post(
        "/api/v1/user-profiles", json={"displayName": "Ana"}, headers=ana.headers
    )
    path = path.format(id=ana.user.id)
    before = await state_of(shared, ana)
    response = await shared.http.request(method, path, json=body, headers=ana.headers)
    error = response.json()
    assert response.status_code == 400, error
    fields = [
        violation["field"]
        for detail in error["details"]
        if detail["@type"].endswith("BadRequest")
        for violation in detail["fieldViolations"]
    ]
    assert fields == [field]
    assert await state_of(shared, ana) == before


async def state_of(shared: RunningService, caller: SignedInUser) -> list[bytes]:
    paths = [
        f"/api/v1/user-profiles/{caller.user.id}",
        "/api/v1/user-settings",
        f"/api/v1/users/{caller.user.id}/posts",
        f"/api/v1/users/{caller.user.id}/following",
    ]
    return [(await shared.http.get(p, headers=caller.headers)).content for p in paths]


async def test_if_match_refuses_stale_etags(shared: RunningService) -> None:
    """The ETag header is the etag of the post; a stale one is 412."""
    ana = await shared.signed_in()
    created = await shared.http.post(
        "/api/v1/posts", json={"title": "x", "body": "y"}, headers=ana.headers
    )
    path, tag = f"/api/v1/posts/{created.json()['id']}", created.headers["etag"]
    assert tag == f'"{created.json()["etag"]}"'
    known = ana.headers | {"if-match": tag}
    changed = await shared.http.patch(path, json={"title": "z"}, headers=known)
    assert changed.status_code == 200
    for verb, content in (("PATCH", {"title": "w"}), ("DELETE", None)):
        response = await shared.http.request(verb, path, json=content, headers=known)
        assert (response.status_code, response.json()["errorCode"]) == (
            412,
            "ETAG_MISMATCH",
        )
    known["if-match"] = changed.headers["etag"]
    deleted = await shared.http.request("DELETE", path, headers=known)
    assert deleted.status_code == 204


async def test_follow_needs_no_body(shared: RunningService) -> None:
    ana, bea = await shared.signed_in(), await shared.signed_in()
    path = f"/api/v1/users/{bea.user.id}/follow"
    for verb in ("PUT", "PUT", "DELETE", "DELETE"):
        response = await shared.http.request(verb, path, headers=ana.headers)
        assert (response.status_code, response.content) == (204, b"")
