"""PostService: posts."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from blatam.post.v1 import post_pb2 as pb
from server.domain.paging import Sort
from server.domain.posts.posts import Post, PostFilter, Posts, PostState
from server.rpc.call import Call
from server.rpc.messages.masks import Readers, new_values
from server.rpc.messages.pages import page_fields, page_params
from server.rpc.messages.timestamps import datetime_of, set_timestamp
from server.rpc.posts import categories

_READERS: Readers = {
    "title": lambda post: post.title,
    "body": lambda post: post.body,
    "category_id": lambda post: post.category_id,
    "state": lambda post: PostState(post.state) if post.state else None,
}
_DEFAULT_SORT = Sort("published_at", descending=True)


class PostServicer:
    """The RPCs of posts."""

    def __init__(self, posts: Posts) -> None:
        self._posts = posts

    async def CreatePost(
        self, request: pb.CreatePostRequest, call: Call
    ) -> pb.CreatePostResponse:
        """Write a post."""

        def response(post: Post) -> pb.CreatePostResponse:
            return pb.CreatePostResponse(post=message(post))

        post = await self._posts.create(
            call.caller.user_id,
            request.title,
            request.body,
            request.category_id,
            PostState(request.state or PostState.PUBLISHED),
            call.idempotency_record(response),
        )
        return response(post)

    async def GetPost(
        self, request: pb.GetPostRequest, call: Call
    ) -> pb.GetPostResponse:
        """Read a post."""
        post = await self._posts.get(call.caller, request.id)
        return pb.GetPostResponse(post=message(post))

    async def UpdatePost(
        self, request: pb.UpdatePostRequest, call: Call
    ) -> pb.UpdatePostResponse:
        """Change a post."""

        def response(post: Post) -> pb.UpdatePostResponse:
            return pb.UpdatePostResponse(post=message(post))

        sent = request.post
        values = new_values("post", sent, request.update_mask, _READERS)
        record = call.idempotency_record(response)
        post = await self._posts.update(call.caller, sent.id, values, sent.etag, record)
        return response(post)

    async def DeletePost(
        self, request: pb.DeletePostRequest, call: Call
    ) -> pb.DeletePostResponse:
        """Delete a post."""
        await self._posts.delete(call.caller, request.id, request.etag)
        return pb.DeletePostResponse()

    async def ListPosts(
        self, request: pb.ListPostsRequest, call: Call
    ) -> pb.ListPostsResponse:
        """List the posts that the caller may see, a page at a time."""
        sort = Sort.parse(request.sort_by) if request.sort_by else _DEFAULT_SORT
        page = await self._posts.list(
            call.caller, _filter(request), sort, page_params(request)
        )
        items = [message(post) for post in page.rows.items]
        return pb.ListPostsResponse(items=items, **page_fields(page))

    async def ExportPosts(
        self, request: pb.ExportPostsRequest, call: Call
    ) -> AsyncGenerator[pb.ExportPostsResponse, None]:
        """Stream every post."""
        async with aclosing(self._posts.export(request.after_id)) as posts:
            async for post in posts:
                yield pb.ExportPostsResponse(post=message(post))


def _filter(request: pb.ListPostsRequest) -> PostFilter:
    return PostFilter(
        author_id=request.author_id,
        category_id=request.category_id,
        since=datetime_of(request, "since"),
        until=datetime_of(request, "until"),
        state=PostState(request.state) if request.state else None,
        with_body=request.view == pb.POST_VIEW_FULL,
    )


def message(post: Post) -> pb.Post:
    """Return the message of a post."""
    result = pb.Post(
        id=post.id,
        author_id=post.author.id,
        title=post.title,
        body=post.body,
        state=pb.PostState.ValueType(post.state),
        etag=post.etag,
        excerpt=post.excerpt,
        author=pb.Author(id=post.author.id, username=post.author.username),
    )
    if post.category:
        result.category_id = post.category.id
        result.category.CopyFrom(categories.message(post.category))
    set_timestamp(result.created_at, post.created_at)
    set_timestamp(result.updated_at, post.updated_at)
    if post.published_at:
        set_timestamp(result.published_at, post.published_at)
    return result
