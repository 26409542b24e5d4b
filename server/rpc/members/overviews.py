"""UserService: overviews."""

from __future__ import annotations

import structlog

from blatam.user.v1 import user_pb2 as pb
from server.domain.members.overviews import Overviews, Part
from server.rpc.accounts.users import message
from server.rpc.call import Call
from server.rpc.posts.posts import message as post_message

log = structlog.get_logger()
_PARTS = {
    Part.USER: pb.OVERVIEW_PART_USER,
    Part.POSTS: pb.OVERVIEW_PART_POSTS,
    Part.FOLLOWERS: pb.OVERVIEW_PART_FOLLOWERS,
}


class OverviewServicer:
    """The RPC of overviews."""

    def __init__(self, overviews: Overviews) -> None:
        self._overviews = overviews

    async def GetUserOverview(
        self, request: pb.GetUserOverviewRequest, call: Call
    ) -> pb.GetUserOverviewResponse:
        """Read an account, its newest posts and its newest followers at once."""
        found = await self._overviews.of(request.id, call.timeout)
        shown = pb.GetUserOverviewResponse(missing=[_PARTS[p] for p in found.missing])
        if found.user:
            shown.user.CopyFrom(message(found.user, call.caller))
        if found.posts:
            shown.posts.extend(post_message(post) for post in found.posts.items)
            shown.post_count = found.posts.total
        if found.followers:
            follows = found.followers.items
            shown.followers.extend(message(f.user, call.caller) for f in follows)
            shown.follower_count = found.followers.total
        for part, cause in found.missing.items():
            log.warning("a part is missing", part=part.value, cause=repr(cause))
        return shown
