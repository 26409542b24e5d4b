"""UserService: settings."""

from __future__ import annotations

from blatam.user.v1 import settings_pb2 as pb
from server.domain.members.settings import (
    MemberSettings,
    Settings,
    Theme,
    Visibility,
)
from server.rpc.call import Call


class SettingsServicer:
    """The RPCs of settings."""

    def __init__(self, settings: MemberSettings) -> None:
        self._settings = settings

    async def GetUserSettings(
        self, request: pb.GetUserSettingsRequest, call: Call
    ) -> pb.GetUserSettingsResponse:
        """Read the caller's settings."""
        found = await self._settings.get(call.caller.user_id)
        return pb.GetUserSettingsResponse(settings=_message(found))

    async def UpdateUserSettings(
        self, request: pb.UpdateUserSettingsRequest, call: Call
    ) -> pb.UpdateUserSettingsResponse:
        """Replace the caller's settings."""
        given = request.settings
        wishes = given.notifications
        wanted = Settings(
            followed_posts=wishes.followed_posts,
            new_followers=wishes.new_followers,
            digest=wishes.digest,
            theme=Theme(given.theme or Theme.SYSTEM),
            visibility=Visibility(given.profile_visibility or Visibility.MEMBERS),
        )
        written = await self._settings.replace(call.caller.user_id, wanted, given.etag)
        return pb.UpdateUserSettingsResponse(settings=_message(written))


def _message(settings: Settings) -> pb.UserSettings:
    return pb.UserSettings(
        notifications=pb.NotificationSettings(
            followed_posts=settings.followed_posts,
            new_followers=settings.new_followers,
            digest=settings.digest,
        ),
        theme=pb.Theme.ValueType(settings.theme),
        profile_visibility=pb.ProfileVisibility.ValueType(settings.visibility),
        etag=settings.etag,
    )
