"""PostService: categories."""

from __future__ import annotations

from blatam.post.v1 import category_pb2 as pb
from server.domain.paging import Sort
from server.domain.posts.categories import Categories, Category
from server.rpc.call import Call
from server.rpc.messages.masks import Readers, new_values
from server.rpc.messages.pages import page_fields, page_params
from server.rpc.messages.timestamps import set_timestamp

_READERS: Readers = {
    "slug": lambda category: category.slug,
    "name": lambda category: category.name,
}


class CategoryServicer:
    """The RPCs of categories."""

    def __init__(self, categories: Categories) -> None:
        self._categories = categories

    async def CreateCategory(
        self, request: pb.CreateCategoryRequest, call: Call
    ) -> pb.CreateCategoryResponse:
        """Create a category."""

        def response(category: Category) -> pb.CreateCategoryResponse:
            return pb.CreateCategoryResponse(category=message(category))

        category = await self._categories.create(
            request.slug, request.name, call.idempotency_record(response)
        )
        return response(category)

    async def ListCategories(
        self, request: pb.ListCategoriesRequest, call: Call
    ) -> pb.ListCategoriesResponse:
        """List the categories, a page at a time."""
        sort = Sort.parse(request.sort_by)
        page = await self._categories.list(call.caller, sort, page_params(request))
        items = [message(category) for category in page.rows.items]
        return pb.ListCategoriesResponse(items=items, **page_fields(page))

    async def UpdateCategory(
        self, request: pb.UpdateCategoryRequest, call: Call
    ) -> pb.UpdateCategoryResponse:
        """Change a category."""

        def response(category: Category) -> pb.UpdateCategoryResponse:
            return pb.UpdateCategoryResponse(category=message(category))

        sent = request.category
        values = new_values("category", sent, request.update_mask, _READERS)
        record = call.idempotency_record(response)
        category = await self._categories.update(sent.id, values, sent.etag, record)
        return response(category)

    async def DeleteCategory(
        self, request: pb.DeleteCategoryRequest, call: Call
    ) -> pb.DeleteCategoryResponse:
        """Delete a category."""
        await self._categories.delete(request.id, request.etag)
        return pb.DeleteCategoryResponse()


def message(category: Category) -> pb.Category:
    """Return the message of a category."""
    result = pb.Category(
        id=category.id, slug=category.slug, name=category.name, etag=category.etag
    )
    set_timestamp(result.created_at, category.created_at)
    set_timestamp(result.updated_at, category.updated_at)
    return result
