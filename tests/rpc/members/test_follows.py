"""Follows and scores over gRPC, with the full chain."""

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import pytest

from blatam.auth.v1 import auth_pb2
from blatam.user.v1 import score_pb2
from blatam.user.v1 import user_pb2 as pb
from server.domain.accounts.users import Role
from tests.running import RunningService, SignedInUser
from tests.status import expect_rpc_error


async def follow(service: RunningService, caller: SignedInUser, user_id: int) -> None:
    request = pb.FollowUserRequest(id=user_id)
    await service.users.FollowUser(request, metadata=caller.metadata)


async def unfollow(service: RunningService, caller: SignedInUser, user_id: int) -> None:
    request = pb.UnfollowUserRequest(id=user_id)
    await service.users.UnfollowUser(request, metadata=caller.metadata)


async def followers(
    service: RunningService, caller: SignedInUser, user_id: int, **page: Any
) -> pb.ListFollowersResponse:
    request = pb.ListFollowersRequest(id=user_id, **page)
    return await service.users.ListFollowers(request, metadata=caller.metadata)


async def following(
    service: RunningService, caller: SignedInUser, user_id: int, **page: Any
) -> pb.ListFollowingResponse:
    request = pb.ListFollowingRequest(id=user_id, **page)
    return await service.users.ListFollowing(request, metadata=caller.metadata)


def ids(users: Sequence[pb.User]) -> list[int]:
    return [user.id for user in users]


async def test_follow_and_unfollow_are_idempotent(shared: RunningService) -> None:
    """Also concurrently."""
    ana, bea = await shared.signed_in(), await shared.signed_in()
    await asyncio.gather(*(follow(shared, ana, bea.user.id) for _ in range(8)))
    listed = await followers(shared, ana, bea.user.id)
    assert (ids(listed.items), listed.total) == ([ana.user.id], 1)
    listed_other = await following(shared, bea, ana.user.id)
    assert (ids(listed_other.items), listed_other.total) == ([bea.user.id], 1)
    assert (await followers(shared, ana, ana.user.id)).total == 0
    await asyncio.gather(*(unfollow(shared, ana, bea.user.id) for _ in range(8)))
    assert (await followers(shared, ana, bea.user.id)).total == 0
    await unfollow(shared, ana, 10**9)


async def test_follow_refuses_self_unknown_users_and_services(
    shared: RunningService,
) -> None:
    """Each refusal has its own reason."""
    ana, root = await shared.signed_in(), await shared.signed_in(Role.ADMIN)
    error = await expect_rpc_error(follow(shared, ana, ana.user.id))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == "SELF_FOLLOW"
    assert error.violations == {("id", "id.self")}
    error = await expect_rpc_error(follow(shared, ana, 10**9))
    assert (error.code, error.reason) == (
        grpc.StatusCode.NOT_FOUND,
        "USER_NOT_FOUND",
    )
    request = auth_pb2.CreateServiceKeyRequest(name="test")
    created = await shared.auth.CreateServiceKey(request, metadata=root.metadata)
    key = SignedInUser(root.user, auth_pb2.TokenPair(access_token=created.secret))
    error = await expect_rpc_error(follow(shared, key, ana.user.id))
    assert error.reason == "USER_REQUIRED"
    for call in (followers, following):
        error = await expect_rpc_error(call(shared, ana, 10**9))
        assert error.reason == "USER_NOT_FOUND"


async def test_list_followers_pages_in_the_order_of_following(
    shared: RunningService,
) -> None:
    """R29: by token each once; a token is valid for one list and caller."""
    ana = await shared.signed_in()
    fans = [await shared.signed_in() for _ in range(5)]
    order = [fans[n] for n in (3, 0, 4, 1, 2)]
    for fan in order:
        await follow(shared, fan, ana.user.id)
    in_order = [fan.user.id for fan in order]
    for sort_by, expected in (
        ("", in_order),
        ("created_at", in_order),
        ("-created_at", in_order[::-1]),
    ):
        seen: list[int] = []
        page = pb.ListFollowersResponse(has_next=True)
        while page.has_next:
            page = await followers(
                shared,
                ana,
                ana.user.id,
                page_size=2,
                sort_by=sort_by,
                page_token=page.next_page_token,
            )
            seen += ids(page.items)
            assert (page.total, page.pages) == (5, 3)
        assert seen == expected
    second = await followers(shared, ana, ana.user.id, page_size=2, page=2)
    assert ids(second.items) == in_order[2:4]
    assert (second.has_prev, second.has_next, second.page) == (True, True, 2)
    token = second.next_page_token
    foreign = {("pageToken", "page_token.foreign")}
    for call in (
        followers(shared, fans[0], ana.user.id, page_token=token),
        followers(shared, ana, fans[0].user.id, page_token=token),
        followers(shared, ana, ana.user.id, page_token=token, sort_by="-created_at"),
        following(shared, ana, ana.user.id, page_token=token),
    ):
        assert (await expect_rpc_error(call)).violations == foreign


@pytest.mark.parametrize(
    ("fields", "violation"),
    [
        ({"id": 0}, ("id", "int64.gt")),
        ({"page": 0}, ("page", "int32.gte")),
        ({"page": 501}, ("page", "page.reach")),
        ({"page_size": 101}, ("pageSize", "int32.gte_lte")),
        ({"sort_by": "username"}, ("sortBy", "string.in")),
        ({"page_token": "x"}, ("pageToken", "page_token.foreign")),
    ],
)
async def test_list_follows_names_invalid_fields(
    shared: RunningService, fields: dict[str, Any], violation: tuple[str, str]
) -> None:
    ana = await shared.signed_in()
    values = {"id": ana.user.id} | fields
    user_id = values.pop("id")
    for call in (followers, following):
        error = await expect_rpc_error(call(shared, ana, user_id, **values))
        assert error.violations == {violation}


async def test_list_follows_leaves_out_deleted_accounts(shared: RunningService) -> None:
    """From items and totals; restored accounts are listed again."""
    ana, bea, cat = [await shared.signed_in() for _ in range(3)]
    root = await shared.signed_in(Role.ADMIN)
    await follow(shared, bea, ana.user.id)
    await follow(shared, cat, ana.user.id)
    await follow(shared, cat, bea.user.id)
    deletion = pb.DeleteUserRequest(id=bea.user.id)
    await shared.users.DeleteUser(deletion, metadata=bea.metadata)
    listed = await followers(shared, cat, ana.user.id)
    assert (ids(listed.items), listed.total) == ([cat.user.id], 1)
    assert (await following(shared, ana, cat.user.id)).total == 1
    error = await expect_rpc_error(followers(shared, cat, bea.user.id))
    assert error.reason == "USER_NOT_FOUND"
    assert (
        await expect_rpc_error(follow(shared, ana, bea.user.id))
    ).reason == "USER_NOT_FOUND"
    restore = pb.UndeleteUserRequest(id=bea.user.id)
    await shared.users.UndeleteUser(restore, metadata=root.metadata)
    assert (await followers(shared, cat, ana.user.id)).total == 2


async def test_list_followers_hides_private_fields_from_others(
    shared: RunningService,
) -> None:
    """R4: e-mail, role and verification are for the owner and admins."""
    ana, bea = await shared.signed_in(), await shared.signed_in()
    root = await shared.signed_in(Role.ADMIN)
    await follow(shared, ana, bea.user.id)
    for caller, sees_private in ((ana, True), (bea, False), (root, True)):
        (user,) = (await followers(shared, caller, bea.user.id)).items
        assert bool(user.email) is sees_private
        assert bool(user.role) is sees_private
        assert user.username == ana.user.username


async def score(
    service: RunningService, caller: SignedInUser, user_id: int, **weights: float
) -> score_pb2.GetUserScoreResponse:
    request = score_pb2.GetUserScoreRequest(id=user_id)
    if weights:
        request.weights.CopyFrom(score_pb2.ScoreWeights(**weights))
    return await service.users.GetUserScore(request, metadata=caller.metadata)


async def test_score_rises_with_followers(shared: RunningService) -> None:
    ana, bea = await shared.signed_in(), await shared.signed_in()
    before = await score(shared, bea, ana.user.id)
    assert before.weights == score_pb2.ScoreWeights(
        posts=0.5, followers=0.3, tenure=0.2
    )
    await follow(shared, bea, ana.user.id)
    after = await score(shared, bea, ana.user.id)
    assert 0 <= before.score < after.score <= 100
    only = await score(shared, bea, ana.user.id, followers=1)
    assert only.score == pytest.approx(100 / 51)


@pytest.mark.parametrize(
    ("weights", "violation"),
    [
        ({"posts": 0.5}, ("weights", "weights.sum")),
        ({"posts": 1, "tenure": 1e-8}, ("weights", "weights.sum")),
        ({"posts": -1, "followers": 1, "tenure": 1},
         ("weights.posts", "double.gte_lte")),
        ({"tenure": float("nan")}, ("weights.tenure", "double.gte_lte")),
        ({"followers": float("inf")}, ("weights.followers", "double.gte_lte")),
    ],
)  # fmt: skip
async def test_score_names_invalid_weights(
    shared: RunningService, weights: dict[str, float], violation: tuple[str, str]
) -> None:
    """R32: NaN and infinity are refused, too."""
    ana = await shared.signed_in()
    error = await expect_rpc_error(score(shared, ana, ana.user.id, **weights))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.violations == {violation}


async def test_score_of_an_unknown_user_is_not_found(shared: RunningService) -> None:
    ana = await shared.signed_in()
    assert (
        await expect_rpc_error(score(shared, ana, 10**9))
    ).reason == "USER_NOT_FOUND"
    overview = pb.GetUserOverviewRequest(id=10**9)
    call = shared.users.GetUserOverview(overview, metadata=ana.metadata)
    assert (await expect_rpc_error(call)).reason == "USER_NOT_FOUND"
