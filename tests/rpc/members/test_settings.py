"""Settings over gRPC, with the full chain."""

import asyncio

import grpc
from google.rpc import error_details_pb2

from blatam.auth.v1 import auth_pb2
from blatam.user.v1 import settings_pb2 as pb
from server.domain.accounts.users import Role
from tests.running import RunningService, SignedInUser
from tests.status import expect_rpc_error

DARK = pb.UserSettings(
    notifications=pb.NotificationSettings(followed_posts=True, digest=True),
    theme=pb.THEME_DARK,
    profile_visibility=pb.PROFILE_VISIBILITY_PRIVATE,
)


async def read(service: RunningService, caller: SignedInUser) -> pb.UserSettings:
    request = pb.GetUserSettingsRequest()
    response = await service.users.GetUserSettings(request, metadata=caller.metadata)
    return response.settings


async def replace(
    service: RunningService,
    caller: SignedInUser,
    settings: pb.UserSettings,
    etag: str = "",
) -> pb.UserSettings:
    request = pb.UpdateUserSettingsRequest(settings=settings)
    request.settings.etag = etag
    response = await service.users.UpdateUserSettings(request, metadata=caller.metadata)
    return response.settings


async def test_update_settings_replaces_all_fields(shared: RunningService) -> None:
    """Omitted fields get their default; other members' settings stay."""
    ana, bea = await shared.signed_in(), await shared.signed_in()
    default = await read(shared, ana)
    assert default.theme == pb.THEME_SYSTEM
    assert default.profile_visibility == pb.PROFILE_VISIBILITY_MEMBERS
    assert default.notifications == pb.NotificationSettings()
    dark = await replace(shared, ana, DARK)
    assert await read(shared, ana) == dark
    assert dark.notifications == DARK.notifications
    light = await replace(shared, ana, pb.UserSettings(theme=pb.THEME_LIGHT))
    assert light.profile_visibility == pb.PROFILE_VISIBILITY_MEMBERS
    assert light.notifications == pb.NotificationSettings()
    assert await read(shared, bea) == default


async def test_update_settings_with_one_etag_succeeds_once(
    shared: RunningService,
) -> None:
    """One of several writers succeeds; writing equal values changes nothing."""
    ana = await shared.signed_in()
    known = (await read(shared, ana)).etag
    themes = (pb.THEME_DARK, pb.THEME_LIGHT, pb.THEME_DARK)
    outcomes = await asyncio.gather(
        *(replace(shared, ana, pb.UserSettings(theme=t), known) for t in themes),
        return_exceptions=True,
    )
    written = [o for o in outcomes if isinstance(o, pb.UserSettings)]
    assert len(written) == 1
    error = await expect_rpc_error(replace(shared, ana, DARK, known))
    assert error.code is grpc.StatusCode.ABORTED
    info = error.detail(error_details_pb2.ErrorInfo)
    assert dict(info.metadata) == {"etag": written[0].etag}
    again = await replace(shared, ana, written[0], written[0].etag)
    assert again == written[0]


async def test_update_settings_names_invalid_fields(shared: RunningService) -> None:
    ana = await shared.signed_in()
    before = await read(shared, ana)
    bad = [
        (pb.UserSettings(theme=pb.Theme.ValueType(9)), "settings.theme"),
        (
            pb.UserSettings(profile_visibility=pb.ProfileVisibility.ValueType(9)),
            "settings.profileVisibility",
        ),
    ]
    for settings, field in bad:
        error = await expect_rpc_error(replace(shared, ana, settings))
        assert error.violations == {(field, "enum.defined_only")}
    empty = pb.UpdateUserSettingsRequest()
    error = await expect_rpc_error(
        shared.users.UpdateUserSettings(empty, metadata=ana.metadata)
    )
    assert error.violations == {("settings", "required")}
    assert await read(shared, ana) == before


async def test_settings_refuse_services(shared: RunningService) -> None:
    root = await shared.signed_in(Role.ADMIN)
    request = auth_pb2.CreateServiceKeyRequest(name="test")
    created = await shared.auth.CreateServiceKey(request, metadata=root.metadata)
    key = SignedInUser(root.user, auth_pb2.TokenPair(access_token=created.secret))
    assert (await expect_rpc_error(read(shared, key))).reason == "USER_REQUIRED"
