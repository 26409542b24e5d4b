"""UserService: profiles."""

from __future__ import annotations

from blatam.user.v1 import profile_pb2 as pb
from server.domain.members.profiles import Profile, Profiles
from server.rpc.call import Call
from server.rpc.messages.masks import Readers, new_values
from server.rpc.messages.moments import set_moment

_READERS: Readers = {
    "display_name": lambda profile: profile.display_name,
    "bio": lambda profile: profile.bio,
    "avatar_url": lambda profile: profile.avatar_url,
    "locale": lambda profile: profile.locale,
    "time_zone": lambda profile: profile.time_zone,
}
_MAY_BE_EMPTY = frozenset(_READERS) - {"display_name"}


class ProfileServicer:
    """The RPCs of profiles."""

    def __init__(self, profiles: Profiles) -> None:
        self._profiles = profiles

    async def CreateUserProfile(
        self, request: pb.CreateUserProfileRequest, call: Call
    ) -> pb.CreateUserProfileResponse:
        """Make a member's profile."""

        def answer(profile: Profile) -> pb.CreateUserProfileResponse:
            return pb.CreateUserProfileResponse(profile=_message(profile))

        values = {name: read(request) for name, read in _READERS.items()}
        made = await self._profiles.create(
            call.caller, request.user_id, values, call.idempotency_record(answer)
        )
        return answer(made)

    async def GetUserProfile(
        self, request: pb.GetUserProfileRequest, call: Call
    ) -> pb.GetUserProfileResponse:
        """Read a member's profile."""
        profile = await self._profiles.get(call.caller, request.user_id)
        return pb.GetUserProfileResponse(profile=_message(profile))

    async def UpdateUserProfile(
        self, request: pb.UpdateUserProfileRequest, call: Call
    ) -> pb.UpdateUserProfileResponse:
        """Change a member's profile."""

        def answer(profile: Profile) -> pb.UpdateUserProfileResponse:
            return pb.UpdateUserProfileResponse(profile=_message(profile))

        given = request.profile
        values = new_values(
            "profile",
            given,
            request.update_mask,
            _READERS,
            bound=("user_id",),
            may_be_empty=_MAY_BE_EMPTY,
        )
        changed = await self._profiles.update(
            given.user_id, values, given.etag, call.idempotency_record(answer)
        )
        return answer(changed)


def _message(profile: Profile) -> pb.UserProfile:
    shown = pb.UserProfile(
        user_id=profile.user_id,
        display_name=profile.display_name,
        bio=profile.bio,
        avatar_url=profile.avatar_url,
        locale=profile.locale,
        time_zone=profile.time_zone,
        etag=profile.etag,
    )
    set_moment(shown.created_at, profile.created_at)
    set_moment(shown.updated_at, profile.updated_at)
    return shown
