"""UserService: settings."""

from __future__ import annotations

from blatam.user.v1 import settings_pb2 as pb
from server.domain.members.settings import (
    MemberSettings,
    Theme,
    UserSettings,
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
        settings = await self._settings.get(call.caller.user_id)
        return pb.GetUserSettingsResponse(settings=_message(settings))

    async def UpdateUserSettings(
        self, request: pb.UpdateUserSettingsRequest, call: Call
    ) -> pb.UpdateUserSettingsResponse:
        """Replace the caller's settings."""
        sent = request.settings
        settings = await self._settings.replace(
            call.caller.user_id,
            UserSettings(
                followed_posts=sent.notifications.followed_posts,
                new_followers=sent.notifications.new_followers,
                digest=sent.notifications.digest,
                theme=Theme(sent.theme or Theme.SYSTEM),
                visibility=Visibility(sent.profile_visibility or Visibility.MEMBERS),
            ),
            sent.etag,
        )
        return pb.UpdateUserSettingsResponse(settings=_message(settings))


def _message(settings: UserSettings) -> pb.UserSettings:
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
