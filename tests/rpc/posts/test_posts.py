"""Posts over gRPC, with the full chain."""

import asyncio
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from blatam.post.v1 import category_pb2
from blatam.post.v1 import post_pb2 as pb
from blatam.user.v1 import user_pb2
from server.domain.accounts.users import Role
from server.domain.edits import json_name
from tests.running import RunningService, SignedInUser
from tests.status import expect_rpc_error

TEXT = {"title": "On numbers", "body": "There are many. " * 20}


async def write(
    service: RunningService, caller: SignedInUser, **values: Any
) -> pb.Post:
    request = pb.CreatePostRequest(**TEXT | values)
    response = await service.posts.CreatePost(request, metadata=caller.metadata)
    return response.post


async def read(service: RunningService, caller: SignedInUser, post_id: int) -> pb.Post:
    request = pb.GetPostRequest(id=post_id)
    return (await service.posts.GetPost(request, metadata=caller.metadata)).post


async def listed(
    service: RunningService, caller: SignedInUser, **fields: Any
) -> pb.ListPostsResponse:
    request = pb.ListPostsRequest(**fields)
    return await service.posts.ListPosts(request, metadata=caller.metadata)


def update(
    post: pb.Post, *paths: str, etag: str = "", request_id: str = "", **values: Any
) -> pb.UpdatePostRequest:
    sent = pb.Post(id=post.id, etag=etag, **values)
    request = pb.UpdatePostRequest(post=sent, request_id=request_id)
    request.update_mask.paths.extend(paths)
    return request


async def category(service: RunningService) -> category_pb2.Category:
    root = await service.signed_in(Role.ADMIN)
    request = category_pb2.CreateCategoryRequest(slug=f"c-{uuid4()}", name="Numbers")
    response = await service.posts.CreateCategory(request, metadata=root.metadata)
    return response.category


async def test_post_is_read_as_it_was_written(shared: RunningService) -> None:
    """With its author and category; lists omit the body."""
    ana, bea = await shared.signed_in(), await shared.signed_in()
    numbers = await category(shared)
    post = await write(shared, ana, category_id=numbers.id)
    assert (post.title, post.body) == (TEXT["title"], TEXT["body"])
    assert (post.author_id, post.author.username) == (ana.user.id, ana.user.username)
    assert (post.category_id, post.category) == (numbers.id, numbers)
    assert post.state == pb.POST_STATE_PUBLISHED
    assert post.excerpt == TEXT["body"][:200]
    assert await read(shared, bea, post.id) == post
    (brief,) = (await listed(shared, bea, author_id=ana.user.id)).items
    assert not brief.body
    brief.body = post.body
    assert brief == post
    page = await listed(shared, bea, author_id=ana.user.id, view=pb.POST_VIEW_FULL)
    assert list(page.items) == [post]


@pytest.mark.parametrize(
    ("fields", "violation"),
    [
        ({"title": ""}, ("title", "string.min_len")),
        ({"title": "é" * 201}, ("title", "string.max_len")),
        ({"title": "a\0"}, ("title", "string.no_nul")),
        ({"body": ""}, ("body", "string.min_len")),
        ({"body": "é" * 50_001}, ("body", "string.max_len")),
        ({"body": "\0"}, ("body", "string.no_nul")),
        ({"category_id": -1}, ("categoryId", "int64.gte")),
        ({"category_id": 10**9}, ("categoryId", "category_id.known")),
        ({"state": 3}, ("state", "enum.defined_only")),
        ({"request_id": "x"}, ("requestId", "string.uuid")),
    ],
)
async def test_create_post_names_invalid_fields(
    shared: RunningService, fields: dict[str, Any], violation: tuple[str, str]
) -> None:
    """The error names the field and the rule; nothing is written."""
    ana = await shared.signed_in()
    error = await expect_rpc_error(write(shared, ana, **fields))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.violations == {violation}
    assert violation[0] in error.message
    assert (await listed(shared, ana, author_id=ana.user.id)).total == 0


async def test_longest_posts_fit_one_page(shared: RunningService) -> None:
    """200 and 50,000 characters, of four bytes each; 20 of them fit on a page."""
    ana = await shared.signed_in()
    long = {"title": "😀" * 200, "body": "😀" * 50_000}
    posts = [await write(shared, ana, **long) for _ in range(20)]
    page = await listed(
        shared, ana, author_id=ana.user.id, view=pb.POST_VIEW_FULL, page_size=20
    )
    assert list(page.items) == posts[::-1]
    too_many = listed(shared, ana, view=pb.POST_VIEW_FULL, page_size=21)
    assert (await expect_rpc_error(too_many)).violations == {
        ("pageSize", "page_size.whole")
    }


async def test_drafts_are_visible_to_author_and_admins_only(
    shared: RunningService,
) -> None:
    """Other members neither read nor list a draft until it is published."""
    ana, bea = await shared.signed_in(), await shared.signed_in()
    root = await shared.signed_in(Role.ADMIN)
    draft = await write(shared, ana, state=pb.POST_STATE_DRAFT)
    error = await expect_rpc_error(read(shared, bea, draft.id))
    assert (error.code, error.reason) == (
        grpc.StatusCode.NOT_FOUND,
        "POST_NOT_FOUND",
    )
    by_ana = {"author_id": ana.user.id}
    for fields in ({}, {"state": pb.POST_STATE_DRAFT}):
        assert (await listed(shared, bea, **by_ana, **fields)).total == 0
        for caller in (ana, root):
            page = await listed(shared, caller, **by_ana, **fields)
            assert [post.id for post in page.items] == [draft.id]
    assert draft.id in {p.id for p in (await listed(shared, ana)).items}
    assert draft.id not in {p.id for p in (await listed(shared, bea)).items}
    for call in (
        shared.posts.UpdatePost(update(draft, title="x"), metadata=bea.metadata),
        shared.posts.DeletePost(
            pb.DeletePostRequest(id=draft.id), metadata=bea.metadata
        ),
    ):
        assert (await expect_rpc_error(call)).reason == "POST_NOT_FOUND"
    request = update(draft, state=pb.POST_STATE_PUBLISHED)
    await shared.posts.UpdatePost(request, metadata=ana.metadata)
    assert (await read(shared, bea, draft.id)).state == pb.POST_STATE_PUBLISHED
    assert (await listed(shared, bea, **by_ana)).total == 1


async def test_post_is_written_by_author_and_admins_only(
    shared: RunningService,
) -> None:
    ana, bea = await shared.signed_in(), await shared.signed_in()
    root = await shared.signed_in(Role.ADMIN)
    post = await write(shared, ana)
    for call in (
        shared.posts.UpdatePost(update(post, title="x"), metadata=bea.metadata),
        shared.posts.DeletePost(
            pb.DeletePostRequest(id=post.id), metadata=bea.metadata
        ),
    ):
        error = await expect_rpc_error(call)
        assert (error.code, error.reason) == (
            grpc.StatusCode.PERMISSION_DENIED,
            "ACCESS_DENIED",
        )
    assert await read(shared, bea, post.id) == post
    changed = await shared.posts.UpdatePost(
        update(post, title="By root"), metadata=root.metadata
    )
    assert (changed.post.title, changed.post.author_id) == ("By root", ana.user.id)
    await shared.posts.DeletePost(
        pb.DeletePostRequest(id=post.id), metadata=root.metadata
    )
    assert (
        await expect_rpc_error(read(shared, ana, post.id))
    ).reason == "POST_NOT_FOUND"


async def test_update_post_changes_single_fields(shared: RunningService) -> None:
    """By mask or by the fields that are set; a stale etag is refused."""
    ana = await shared.signed_in()
    numbers = await category(shared)
    post = await write(shared, ana)
    call = shared.posts.UpdatePost
    first = (
        await call(update(post, category_id=numbers.id), metadata=ana.metadata)
    ).post
    assert (first.category_id, first.title) == (numbers.id, post.title)
    second = (await call(update(post, "category_id"), metadata=ana.metadata)).post
    assert second.category_id == 0
    stale = update(post, title="x", etag=first.etag)
    assert (
        await expect_rpc_error(call(stale, metadata=ana.metadata))
    ).reason == "ETAG_MISMATCH"
    for bad, violation in (
        (update(post, "title"), ("post.title", "update_mask.empty")),
        (update(post, "state"), ("post.state", "update_mask.empty")),
        (update(post), ("updateMask", "update_mask.required")),
        (update(post, "author_id", author_id=1),
         ("post.authorId", "update_mask.not_writable")),
        (update(post, "*"), ("post.*", "update_mask.not_writable")),
        (update(post, title="a" * 201), ("post.title", "string.max_len")),
        (update(post, category_id=10**9),
         ("post.categoryId", "category_id.known")),
        (update(pb.Post(), title="x"), ("post", "post.id")),
    ):  # fmt: skip
        error = await expect_rpc_error(call(bad, metadata=ana.metadata))
        assert error.violations == {violation}
    assert await read(shared, ana, post.id) == second
    deletion = pb.DeletePostRequest(id=post.id, etag=first.etag)
    error = await expect_rpc_error(
        shared.posts.DeletePost(deletion, metadata=ana.metadata)
    )
    assert error.code is grpc.StatusCode.ABORTED
    deletion.etag = second.etag
    await shared.posts.DeletePost(deletion, metadata=ana.metadata)
    error = await expect_rpc_error(
        shared.posts.DeletePost(deletion, metadata=ana.metadata)
    )
    assert error.reason == "POST_NOT_FOUND"


async def test_post_can_be_sent_back_as_it_was_read(shared: RunningService) -> None:
    """AIP-203: without a mask, output-only fields are ignored; a mask names them."""
    ana = await shared.signed_in()
    numbers = await category(shared)
    post = await write(shared, ana, category_id=numbers.id)
    post.title = "new"
    request = pb.UpdatePostRequest(post=post)
    call = shared.posts.UpdatePost
    changed = (await call(request, metadata=ana.metadata)).post
    assert (changed.title, changed.created_at) == ("new", post.created_at)
    output_only = [
        "author_id", "created_at", "updated_at", "published_at", "excerpt",
        "author", "category",
    ]  # fmt: skip
    request.post.etag = ""
    request.update_mask.paths.extend(["title", *output_only])
    error = await expect_rpc_error(call(request, metadata=ana.metadata))
    assert error.violations == {
        (f"post.{json_name(name)}", "update_mask.not_writable") for name in output_only
    }


async def test_post_writes_are_idempotent(shared: RunningService) -> None:
    """L14: a repeat gets the first response."""
    ana = await shared.signed_in()
    request_id = str(uuid4())
    posts = await asyncio.gather(
        *(write(shared, ana, request_id=request_id) for _ in range(8))
    )
    assert len({post.id for post in posts}) == 1
    request = update(posts[0], title="New", request_id=str(uuid4()))
    answers = [
        await shared.posts.UpdatePost(request, metadata=ana.metadata) for _ in range(3)
    ]
    assert {answer.post.etag for answer in answers} == {"2"}


async def test_list_posts_filters_by_author_category_and_time(
    service: RunningService,
) -> None:
    ana, bea = await service.signed_in(), await service.signed_in()
    numbers = await category(service)
    first = await write(service, ana, category_id=numbers.id)
    second = await write(service, bea, category_id=numbers.id)
    third = await write(service, ana)
    between = Timestamp(seconds=second.created_at.seconds)
    between.nanos = second.created_at.nanos
    for fields, expected in (
        ({}, [third, second, first]),
        ({"author_id": ana.user.id}, [third, first]),
        ({"category_id": numbers.id}, [second, first]),
        ({"category_id": numbers.id, "author_id": ana.user.id}, [first]),
        ({"since": between}, [third, second]),
        ({"until": between}, [first]),
        ({"sort_by": "created_at"}, [first, second, third]),
        ({"sort_by": "-id"}, [third, second, first]),
        ({"author_id": 10**9}, []),
        ({"category_id": 10**9}, []),
    ):
        page = await listed(service, bea, **fields)
        assert [p.id for p in page.items] == [p.id for p in expected]
        assert page.total == len(expected)


async def test_list_posts_by_token_has_every_post_once(service: RunningService) -> None:
    """R29: drafts and published posts in order; a token is bound to caller and list."""
    ana, bea = await service.signed_in(), await service.signed_in()
    posts = [
        await write(service, ana, state=pb.POST_STATE_DRAFT if n % 3 else 0)
        for n in range(7)
    ]
    for sort_by in ("", "created_at", "id", "-id"):
        seen: list[int] = []
        page = pb.ListPostsResponse(has_next=True)
        while page.has_next:
            page = await listed(
                service,
                ana,
                page_size=2,
                sort_by=sort_by,
                page_token=page.next_page_token,
            )
            seen += [post.id for post in page.items]
            assert page.total == 7
        by_number = [
            post.id
            for number in (1, 2, 3, 4)
            for post in (
                await listed(service, ana, page_size=2, page=number, sort_by=sort_by)
            ).items
        ]
        assert by_number == seen
        newest_first = sort_by in ("", "-id")
        assert seen == [p.id for p in (posts[::-1] if newest_first else posts)]
    token = (await listed(service, ana, page_size=2)).next_page_token
    foreign = {("pageToken", "page_token.foreign")}
    for call in (
        listed(service, bea, page_token=token),
        listed(service, ana, page_token=token, sort_by="id"),
        listed(service, ana, page_token=token, author_id=ana.user.id),
    ):
        assert (await expect_rpc_error(call)).violations == foreign


@pytest.mark.parametrize(
    ("fields", "violation"),
    [
        ({"page": 0}, ("page", "int32.gte")),
        ({"page": 501}, ("page", "page.reach")),
        ({"page_size": 0}, ("pageSize", "int32.gte_lte")),
        ({"sort_by": "title"}, ("sortBy", "string.in")),
        ({"page_token": "x"}, ("pageToken", "page_token.foreign")),
        ({"author_id": -1}, ("authorId", "int64.gte")),
        ({"category_id": -1}, ("categoryId", "int64.gte")),
        ({"since": Timestamp(seconds=2**60)}, ("since", "timestamp.range")),
        ({"until": Timestamp(nanos=-1)}, ("until", "timestamp.range")),
        ({"state": 9}, ("state", "enum.defined_only")),
        ({"view": 9}, ("view", "enum.defined_only")),
    ],
)
async def test_list_posts_names_invalid_fields(
    shared: RunningService, fields: dict[str, Any], violation: tuple[str, str]
) -> None:
    ana = await shared.signed_in()
    error = await expect_rpc_error(listed(shared, ana, **fields))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.violations == {violation}


async def test_deleted_members_posts_are_not_found(shared: RunningService) -> None:
    """Neither by id nor in lists and totals, for admins, too."""
    ana, bea = await shared.signed_in(), await shared.signed_in()
    root = await shared.signed_in(Role.ADMIN)
    numbers = await category(shared)
    post = await write(shared, ana, category_id=numbers.id)
    deletion = user_pb2.DeleteUserRequest(id=ana.user.id)
    await shared.users.DeleteUser(deletion, metadata=ana.metadata)
    for caller in (bea, root):
        assert (
            await expect_rpc_error(read(shared, caller, post.id))
        ).reason == "POST_NOT_FOUND"
        assert (await listed(shared, caller, author_id=ana.user.id)).total == 0
        assert (await listed(shared, caller, category_id=numbers.id)).total == 0
    restore = user_pb2.UndeleteUserRequest(id=ana.user.id)
    await shared.users.UndeleteUser(restore, metadata=root.metadata)
    assert await read(shared, bea, post.id) == post
