"""Categories over gRPC, with the full chain."""

import asyncio
from typing import Any
from uuid import uuid4

import grpc
import pytest

from blatam.post.v1 import category_pb2 as pb
from blatam.post.v1 import post_pb2
from server.domain.accounts.users import Role
from tests.running import RunningService, SignedInUser
from tests.status import expect_rpc_error


async def create(
    service: RunningService, caller: SignedInUser, **values: Any
) -> pb.Category:
    request = pb.CreateCategoryRequest(**{"name": "Numbers"} | values)
    response = await service.posts.CreateCategory(request, metadata=caller.metadata)
    return response.category


async def delete(
    service: RunningService, caller: SignedInUser, category_id: int, **f: Any
) -> None:
    request = pb.DeleteCategoryRequest(id=category_id, **f)
    await service.posts.DeleteCategory(request, metadata=caller.metadata)


def slug() -> str:
    return f"c-{uuid4()}"


async def test_category_slugs_are_unique(shared: RunningService) -> None:
    """The constraint decides: of concurrent requests one succeeds."""
    root = await shared.signed_in(Role.ADMIN)
    taken = slug()
    outcomes = await asyncio.gather(
        *(create(shared, root, slug=taken) for _ in range(8)), return_exceptions=True
    )
    created = [o for o in outcomes if isinstance(o, pb.Category)]
    assert len(created) == 1
    error = await expect_rpc_error(create(shared, root, slug=taken))
    assert (error.code, error.reason) == (
        grpc.StatusCode.ALREADY_EXISTS,
        "SLUG_TAKEN",
    )
    other = await create(shared, root, slug=slug())
    request = pb.UpdateCategoryRequest(category=pb.Category(id=other.id, slug=taken))
    call = shared.posts.UpdateCategory(request, metadata=root.metadata)
    assert (await expect_rpc_error(call)).reason == "SLUG_TAKEN"


@pytest.mark.parametrize(
    ("fields", "violations"),
    [
        ({"slug": ""}, {("slug", "string.min_len"), ("slug", "slug.form")}),
        ({"slug": "a" * 101}, {("slug", "string.max_len")}),
        ({"slug": "Numbers"}, {("slug", "slug.form")}),
        ({"slug": "a--b"}, {("slug", "slug.form")}),
        ({"slug": "a-b\n"}, {("slug", "slug.form")}),
        ({"name": ""}, {("name", "string.min_len")}),
        ({"name": "a" * 101}, {("name", "string.max_len")}),
        ({"name": "\0"}, {("name", "string.no_nul")}),
        ({"request_id": "x"}, {("requestId", "string.uuid")}),
    ],
)
async def test_create_category_names_invalid_fields(
    shared: RunningService, fields: dict[str, Any], violations: set[tuple[str, str]]
) -> None:
    """The error names the field and the rule; nothing is written."""
    root = await shared.signed_in(Role.ADMIN)
    count = await category_count(shared, root)
    error = await expect_rpc_error(create(shared, root, **{"slug": slug()} | fields))
    assert error.violations == violations
    assert await category_count(shared, root) == count


async def category_count(service: RunningService, caller: SignedInUser) -> int:
    request = pb.ListCategoriesRequest()
    page = await service.posts.ListCategories(request, metadata=caller.metadata)
    return page.total


async def test_update_category_follows_mask_and_etag(shared: RunningService) -> None:
    root = await shared.signed_in(Role.ADMIN)
    numbers = await create(shared, root, slug=slug())
    call = shared.posts.UpdateCategory
    request = pb.UpdateCategoryRequest(
        category=pb.Category(id=numbers.id, name="Shapes", etag=numbers.etag)
    )
    changed = (await call(request, metadata=root.metadata)).category
    assert (changed.name, changed.slug) == ("Shapes", numbers.slug)
    error = await expect_rpc_error(call(request, metadata=root.metadata))
    assert error.reason == "ETAG_MISMATCH"
    request.category.etag = ""
    request.update_mask.paths.append("created_at")
    error = await expect_rpc_error(call(request, metadata=root.metadata))
    assert error.violations == {("category.createdAt", "update_mask.not_writable")}
    request.category.id = 10**9
    request.update_mask.paths[:] = ["name"]
    error = await expect_rpc_error(call(request, metadata=root.metadata))
    assert error.reason == "CATEGORY_NOT_FOUND"


async def test_category_can_be_sent_back_as_it_was_read(shared: RunningService) -> None:
    """AIP-203: without a mask, output-only fields are ignored."""
    root = await shared.signed_in(Role.ADMIN)
    sent = await create(shared, root, slug=slug())
    sent.name = "Shapes"
    request = pb.UpdateCategoryRequest(category=sent)
    call = shared.posts.UpdateCategory(request, metadata=root.metadata)
    changed = (await call).category
    assert (changed.name, changed.created_at) == ("Shapes", sent.created_at)


async def test_category_in_use_cannot_be_deleted(shared: RunningService) -> None:
    """Drafts count as well; a category of deleted posts only can be deleted."""
    root, ana = await shared.signed_in(Role.ADMIN), await shared.signed_in()
    numbers = await create(shared, root, slug=slug())
    request = post_pb2.CreatePostRequest(
        title="x", body="y", category_id=numbers.id, state=post_pb2.POST_STATE_DRAFT
    )
    post = (await shared.posts.CreatePost(request, metadata=ana.metadata)).post
    error = await expect_rpc_error(delete(shared, root, numbers.id))
    assert (error.code, error.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "CATEGORY_IN_USE",
    )
    deletion = post_pb2.DeletePostRequest(id=post.id)
    await shared.posts.DeletePost(deletion, metadata=ana.metadata)
    stale = delete(shared, root, numbers.id, etag="ff")
    assert (await expect_rpc_error(stale)).reason == "ETAG_MISMATCH"
    await delete(shared, root, numbers.id)
    error = await expect_rpc_error(delete(shared, root, numbers.id))
    assert error.reason == "CATEGORY_NOT_FOUND"


async def test_post_and_deletion_of_its_category_exclude_each_other(
    shared: RunningService,
) -> None:
    """One of the two is refused: no post is in a deleted category."""
    root, ana = await shared.signed_in(Role.ADMIN), await shared.signed_in()
    for _ in range(5):
        numbers = await create(shared, root, slug=slug())
        request = post_pb2.CreatePostRequest(
            title="x", body="y", category_id=numbers.id
        )
        written, ended = await asyncio.gather(
            shared.posts.CreatePost(request, metadata=ana.metadata),
            delete(shared, root, numbers.id),
            return_exceptions=True,
        )
        assert isinstance(written, Exception) is not isinstance(ended, Exception)


async def test_list_categories_has_every_category_once(service: RunningService) -> None:
    """By token, in each order."""
    root = await service.signed_in(Role.ADMIN)
    created = [await create(service, root, slug=name) for name in ("b", "a", "c")]
    for sort_by, order in (
        ("", [0, 1, 2]),
        ("-created_at", [2, 1, 0]),
        ("slug", [1, 0, 2]),
        ("-slug", [2, 0, 1]),
    ):
        seen: list[int] = []
        page = pb.ListCategoriesResponse(has_next=True)
        while page.has_next:
            request = pb.ListCategoriesRequest(
                page_size=1, sort_by=sort_by, page_token=page.next_page_token
            )
            page = await service.posts.ListCategories(request, metadata=root.metadata)
            seen += [category.id for category in page.items]
            assert page.total == 3
        assert seen == [created[n].id for n in order]
