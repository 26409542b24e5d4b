"""UserService: follows."""

from __future__ import annotations

from blatam.user.v1 import user_pb2 as pb
from server.domain.members.follows import Follow, Follows, Side
from server.domain.paging import Page, Sort
from server.rpc.accounts.users import message
from server.rpc.call import Call
from server.rpc.messages.pages import page_fields, page_params


class FollowServicer:
    """The RPCs of following."""

    def __init__(self, follows: Follows) -> None:
        self._follows = follows

    async def FollowUser(
        self, request: pb.FollowUserRequest, call: Call
    ) -> pb.FollowUserResponse:
        """Let the caller follow a member."""
        await self._follows.follow(call.caller.user_id, request.id)
        return pb.FollowUserResponse()

    async def UnfollowUser(
        self, request: pb.UnfollowUserRequest, call: Call
    ) -> pb.UnfollowUserResponse:
        """End the caller's following of a member."""
        await self._follows.unfollow(call.caller.user_id, request.id)
        return pb.UnfollowUserResponse()

    async def ListFollowers(
        self, request: pb.ListFollowersRequest, call: Call
    ) -> pb.ListFollowersResponse:
        """List the followers of a member."""
        page = await self._page(Side.FOLLOWERS, request, call)
        items = [message(follow.user, call.caller) for follow in page.rows.items]
        return pb.ListFollowersResponse(items=items, **page_fields(page))

    async def ListFollowing(
        self, request: pb.ListFollowingRequest, call: Call
    ) -> pb.ListFollowingResponse:
        """List the accounts that a member follows."""
        page = await self._page(Side.FOLLOWING, request, call)
        items = [message(follow.user, call.caller) for follow in page.rows.items]
        return pb.ListFollowingResponse(items=items, **page_fields(page))

    async def _page(
        self,
        side: Side,
        request: pb.ListFollowersRequest | pb.ListFollowingRequest,
        call: Call,
    ) -> Page[Follow]:
        sort = Sort.parse(request.sort_by)
        return await self._follows.list(
            call.caller, side, request.id, sort, page_params(request)
        )
