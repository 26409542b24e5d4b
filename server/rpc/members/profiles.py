"""UserService: profiles."""

from __future__ import annotations

from blatam.user.v1 import profile_pb2 as pb
from server.domain.members.profiles import Profile, Profiles
from server.rpc.call import Call
from server.rpc.messages.masks import Readers, new_values
from server.rpc.messages.timestamps import set_timestamp

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
        """Create a member's profile."""

        def response(profile: Profile) -> pb.CreateUserProfileResponse:
            return pb.CreateUserProfileResponse(profile=_message(profile))

        values = {name: read(request) for name, read in _READERS.items()}
        profile = await self._profiles.create(
            call.caller, request.user_id, values, call.idempotency_record(response)
        )
        return response(profile)

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

        def response(profile: Profile) -> pb.UpdateUserProfileResponse:
            return pb.UpdateUserProfileResponse(profile=_message(profile))

        sent = request.profile
        values = new_values(
            "profile",
            sent,
            request.update_mask,
            _READERS,
            identifiers=("user_id",),
            may_be_empty=_MAY_BE_EMPTY,
        )
        record = call.idempotency_record(response)
        profile = await self._profiles.update(sent.user_id, values, sent.etag, record)
        return response(profile)


def _message(profile: Profile) -> pb.UserProfile:
    message = pb.UserProfile(
        user_id=profile.user_id,
        display_name=profile.display_name,
        bio=profile.bio,
        avatar_url=profile.avatar_url,
        locale=profile.locale,
        time_zone=profile.time_zone,
        etag=profile.etag,
    )
    set_timestamp(message.created_at, profile.created_at)
    set_timestamp(message.updated_at, profile.updated_at)
    return message
