"""GetUserOverview with the full chain, while a part of the store is broken."""

import grpc
import sqlalchemy as sa

from blatam.post.v1 import post_pb2
from blatam.user.v1 import user_pb2 as pb
from server.store.connections.connect import Database
from tests.running import RunningService
from tests.status import expect_rpc_error


async def test_overview_reports_a_failed_part_as_missing(
    service: RunningService, database_url: str
) -> None:
    """The other parts are returned; a list of the failed part alone is an error."""
    ana, bea = await service.signed_in(), await service.signed_in()
    follow = pb.FollowUserRequest(id=ana.user.id)
    await service.users.FollowUser(follow, metadata=bea.metadata)
    database = Database(database_url)
    async with database.transaction() as connection:
        await connection.execute(sa.text("alter table posts rename title to renamed"))
    await database.close()
    request = pb.GetUserOverviewRequest(id=ana.user.id)
    overview = await service.users.GetUserOverview(request, metadata=bea.metadata)
    assert list(overview.missing) == [pb.OVERVIEW_PART_POSTS]
    assert overview.user.id == ana.user.id
    assert [user.id for user in overview.followers] == [bea.user.id]
    listed = post_pb2.ListPostsRequest(author_id=ana.user.id)
    error = await expect_rpc_error(
        service.posts.ListPosts(listed, metadata=bea.metadata)
    )
    assert (error.code, error.message) == (
        grpc.StatusCode.INTERNAL,
        "internal error",
    )


async def test_overview_has_the_newest_published_posts(
    shared: RunningService,
) -> None:
    """Five published posts, the newest first, without bodies; all are counted."""
    ana = await shared.signed_in()
    for number in range(7):
        post = post_pb2.CreatePostRequest(title=f"Post {number}", body="x")
        await shared.posts.CreatePost(post, metadata=ana.metadata)
    draft = post_pb2.CreatePostRequest(
        title="Draft", body="x", state=post_pb2.POST_STATE_DRAFT
    )
    await shared.posts.CreatePost(draft, metadata=ana.metadata)
    request = pb.GetUserOverviewRequest(id=ana.user.id)
    overview = await shared.users.GetUserOverview(request, metadata=ana.metadata)
    assert [post.title for post in overview.posts] == [
        f"Post {n}" for n in (6, 5, 4, 3, 2)
    ]
    assert not any(post.body for post in overview.posts)
    assert overview.post_count == 7
