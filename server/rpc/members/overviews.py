"""UserService: overviews."""

from __future__ import annotations

import structlog

from blatam.user.v1 import user_pb2 as pb
from server.domain.members.overviews import OverviewPart, Overviews
from server.rpc.accounts.users import message
from server.rpc.call import Call
from server.rpc.posts.posts import message as post_message

log = structlog.get_logger()
_PARTS = {
    OverviewPart.USER: pb.OVERVIEW_PART_USER,
    OverviewPart.POSTS: pb.OVERVIEW_PART_POSTS,
    OverviewPart.FOLLOWERS: pb.OVERVIEW_PART_FOLLOWERS,
}


class OverviewServicer:
    """The RPC of overviews."""

    def __init__(self, overviews: Overviews) -> None:
        self._overviews = overviews

    async def GetUserOverview(
        self, request: pb.GetUserOverviewRequest, call: Call
    ) -> pb.GetUserOverviewResponse:
        """Read an account, its newest posts and its newest followers."""
        overview = await self._overviews.get(request.id, call.timeout)
        response = pb.GetUserOverviewResponse(
            missing=[_PARTS[part] for part in overview.missing]
        )
        if overview.user:
            response.user.CopyFrom(message(overview.user, call.caller))
        if overview.posts:
            response.posts.extend(post_message(post) for post in overview.posts.items)
            response.post_count = overview.posts.total
        if overview.followers:
            follows = overview.followers.items
            response.followers.extend(message(f.user, call.caller) for f in follows)
            response.follower_count = overview.followers.total
        for part, error in overview.missing.items():
            log.warning(
                "a part of an overview is missing", part=part.value, cause=repr(error)
            )
        return response
