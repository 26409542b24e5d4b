"""Profiles and settings over gRPC, with the full chain."""

import asyncio
from typing import Any
from uuid import uuid4

import grpc
import pytest

from blatam.user.v1 import profile_pb2, settings_pb2, user_pb2
from server.domain.accounts.users import Role
from tests.running import RunningService, SignedInUser
from tests.status import expect_rpc_error

ANA = {
    "display_name": "Ana María",
    "bio": "Reads.",
    "avatar_url": "https://example.com/ana.png?s=1",
    "locale": "es-CO",
    "time_zone": "America/Bogota",
}


async def create(
    service: RunningService, caller: SignedInUser, **values: Any
) -> profile_pb2.UserProfile:
    request = profile_pb2.CreateUserProfileRequest(**ANA | values)
    response = await service.users.CreateUserProfile(request, metadata=caller.metadata)
    return response.profile


async def read(
    service: RunningService, caller: SignedInUser, user_id: int
) -> profile_pb2.UserProfile:
    request = profile_pb2.GetUserProfileRequest(user_id=user_id)
    response = await service.users.GetUserProfile(request, metadata=caller.metadata)
    return response.profile


def update(
    caller: SignedInUser,
    *paths: str,
    etag: str = "",
    request_id: str = "",
    **values: Any,
) -> profile_pb2.UpdateUserProfileRequest:
    sent = profile_pb2.UserProfile(user_id=caller.user.id, etag=etag, **values)
    request = profile_pb2.UpdateUserProfileRequest(profile=sent, request_id=request_id)
    request.update_mask.paths.extend(paths)
    return request


async def set_private(
    service: RunningService, caller: SignedInUser, *, private: bool
) -> None:
    visibility = (
        settings_pb2.PROFILE_VISIBILITY_PRIVATE
        if private
        else settings_pb2.PROFILE_VISIBILITY_MEMBERS
    )
    request = settings_pb2.UpdateUserSettingsRequest()
    request.settings.profile_visibility = visibility
    await service.users.UpdateUserSettings(request, metadata=caller.metadata)


async def test_profile_is_read_as_it_was_created(shared: RunningService) -> None:
    ana, bea = await shared.signed_in(), await shared.signed_in()
    created = await create(shared, ana)
    assert created.user_id == ana.user.id
    assert {name: getattr(created, name) for name in ANA} == ANA
    assert await read(shared, bea, ana.user.id) == created
    error = await expect_rpc_error(create(shared, ana))
    assert (error.code, error.reason) == (
        grpc.StatusCode.ALREADY_EXISTS,
        "PROFILE_EXISTS",
    )
    error = await expect_rpc_error(read(shared, ana, bea.user.id))
    assert error.reason == "PROFILE_NOT_FOUND"


@pytest.mark.parametrize(
    ("fields", "violation"),
    [
        ({"user_id": -1}, ("userId", "int64.gte")),
        ({"display_name": ""}, ("displayName", "string.min_len")),
        ({"display_name": "a" * 101}, ("displayName", "string.max_len")),
        ({"display_name": "a\0"}, ("displayName", "string.no_nul")),
        ({"bio": "é" * 2001}, ("bio", "string.max_len")),
        ({"avatar_url": "javascript:alert(1)"}, ("avatarUrl", "avatar_url.form")),
        ({"avatar_url": "//x.co/a.png"}, ("avatarUrl", "avatar_url.form")),
        ({"avatar_url": "https://a b.co"}, ("avatarUrl", "avatar_url.form")),
        ({"avatar_url": "https://u:p@x.co/a"}, ("avatarUrl", "avatar_url.form")),
        ({"avatar_url": "https://x.co/" + "a" * 2048}, ("avatarUrl", "string.max_len")),
        ({"locale": "spanish_CO"}, ("locale", "locale.form")),
        ({"locale": "es\n"}, ("locale", "locale.form")),
        ({"locale": "de-u"}, ("locale", "locale.form")),
        ({"locale": "de-u-c-o"}, ("locale", "locale.form")),
        ({"locale": "de--DE"}, ("locale", "locale.form")),
        ({"locale": "de-"}, ("locale", "locale.form")),
        ({"locale": "de-toolongtag"}, ("locale", "locale.form")),
        ({"locale": "\u0664\u0665-DE"}, ("locale", "locale.form")),
        ({"time_zone": "../../etc/passwd"}, ("timeZone", "time_zone.form")),
        ({"time_zone": "Mars/Phobos"}, ("timeZone", "time_zone.known")),
        ({"time_zone": "posix/UTC"}, ("timeZone", "time_zone.known")),
        ({"request_id": "x"}, ("requestId", "string.uuid")),
    ],
)  # fmt: skip
async def test_create_profile_names_invalid_fields(
    shared: RunningService, fields: dict[str, Any], violation: tuple[str, str]
) -> None:
    """The error names the field and the rule; nothing is written."""
    ana = await shared.signed_in()
    error = await expect_rpc_error(create(shared, ana, **fields))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.violations == {violation}
    assert violation[0] in error.message
    error = await expect_rpc_error(read(shared, ana, ana.user.id))
    assert error.reason == "PROFILE_NOT_FOUND"


@pytest.mark.parametrize(
    "locale",
    [
        "es",
        "pt-BR",
        "zh-Hant-TW",
        "sl-rozaj-biske",
        "de-u-co-phonebk",
        "en-a-bbb-x-a-1",
        "de-DE-u-nu-latn-t-en-x-y",
        "en-0-abc",
    ],
)
async def test_profile_locale_is_a_bcp_47_tag(
    shared: RunningService, locale: str
) -> None:
    """Extensions and private use, too, on create and on update, over gRPC and REST."""
    ana, bea = await shared.signed_in(), await shared.signed_in()
    created = await create(shared, ana, locale=locale)
    assert created.locale == locale
    request = update(ana, locale=locale, bio="new")
    call = shared.users.UpdateUserProfile(request, metadata=ana.metadata)
    assert (await call).profile.locale == locale
    profile = {"displayName": "Bea", "locale": locale}
    response = await shared.http.post(
        "/api/v1/user-profiles", json=profile, headers=bea.headers
    )
    assert (response.status_code, response.json()["locale"]) == (201, locale)
    path = f"/api/v1/user-profiles/{bea.user.id}"
    body = {"locale": "fr"}
    await shared.http.patch(path, json=body, headers=bea.headers)
    body = {"locale": locale}
    response = await shared.http.patch(path, json=body, headers=bea.headers)
    assert (response.status_code, response.json()["locale"]) == (200, locale)


async def test_profile_can_be_sent_back_as_it_was_read(shared: RunningService) -> None:
    """AIP-203: without a mask, output-only fields are ignored; a mask names them."""
    ana = await shared.signed_in()
    profile = await create(shared, ana)
    profile.bio = "new"
    request = profile_pb2.UpdateUserProfileRequest(profile=profile)
    call = shared.users.UpdateUserProfile
    changed = (await call(request, metadata=ana.metadata)).profile
    assert (changed.bio, changed.created_at) == ("new", profile.created_at)
    request.profile.etag = ""
    request.update_mask.paths.extend(["bio", "created_at", "updated_at"])
    error = await expect_rpc_error(call(request, metadata=ana.metadata))
    assert error.violations == {
        ("profile.createdAt", "update_mask.not_writable"),
        ("profile.updatedAt", "update_mask.not_writable"),
    }


async def test_profile_is_written_by_owner_and_admins_only(
    shared: RunningService,
) -> None:
    ana, bea = await shared.signed_in(), await shared.signed_in()
    root = await shared.signed_in(Role.ADMIN)
    error = await expect_rpc_error(create(shared, bea, user_id=ana.user.id))
    assert error.code is grpc.StatusCode.PERMISSION_DENIED
    created = await create(shared, root, user_id=ana.user.id)
    assert created.user_id == ana.user.id
    request = update(ana, display_name="Bea was here")
    error = await expect_rpc_error(
        shared.users.UpdateUserProfile(request, metadata=bea.metadata)
    )
    assert error.code is grpc.StatusCode.PERMISSION_DENIED
    changed = await shared.users.UpdateUserProfile(request, metadata=root.metadata)
    assert changed.profile.display_name == "Bea was here"
    unknown = profile_pb2.CreateUserProfileRequest(user_id=10**9, display_name="x")
    error = await expect_rpc_error(
        shared.users.CreateUserProfile(unknown, metadata=root.metadata)
    )
    assert error.reason == "USER_NOT_FOUND"


async def test_update_profile_changes_single_fields(shared: RunningService) -> None:
    """By mask or by the fields that are set; a stale etag is refused."""
    ana = await shared.signed_in()
    created = await create(shared, ana)
    call = shared.users.UpdateUserProfile
    request = update(ana, "bio", "locale", bio="", locale="pt-BR")
    changed = (await call(request, metadata=ana.metadata)).profile
    assert (changed.bio, changed.locale) == ("", "pt-BR")
    assert changed.display_name == created.display_name
    assert changed.etag != created.etag
    stale = update(ana, display_name="Other", etag=created.etag)
    error = await expect_rpc_error(call(stale, metadata=ana.metadata))
    assert (error.code, error.reason) == (
        grpc.StatusCode.ABORTED,
        "ETAG_MISMATCH",
    )
    for bad, violation in (
        (update(ana, "display_name"), ("profile.displayName", "update_mask.empty")),
        (update(ana), ("updateMask", "update_mask.required")),
        (
            update(ana, "created_at"),
            ("profile.createdAt", "update_mask.not_writable"),
        ),
        (update(ana, "*"), ("profile.*", "update_mask.not_writable")),
        (update(ana, time_zone="Mars/Phobos"),
         ("profile.timeZone", "time_zone.known")),
        (update(ana, locale="-"), ("profile.locale", "locale.form")),
    ):  # fmt: skip
        error = await expect_rpc_error(call(bad, metadata=ana.metadata))
        assert error.violations == {violation}
    assert await read(shared, ana, ana.user.id) == changed


async def test_profile_writes_are_idempotent(shared: RunningService) -> None:
    """L14: a repeat gets the first response."""
    ana = await shared.signed_in()
    request_id = str(uuid4())
    created = await asyncio.gather(
        *(create(shared, ana, request_id=request_id) for _ in range(5))
    )
    assert len({profile.SerializeToString() for profile in created}) == 1
    request = update(ana, bio="new", request_id=str(uuid4()))
    call = shared.users.UpdateUserProfile
    changed = [await call(request, metadata=ana.metadata) for _ in range(3)]
    assert {answer.profile.etag for answer in changed} == {"2"}


async def test_private_profile_is_not_found_by_others(shared: RunningService) -> None:
    """The same NOT_FOUND as for a missing one; the owner and admins read it."""
    ana, bea = await shared.signed_in(), await shared.signed_in()
    root = await shared.signed_in(Role.ADMIN)
    created = await create(shared, ana)
    await set_private(shared, ana, private=True)
    error = await expect_rpc_error(read(shared, bea, ana.user.id))
    none = await expect_rpc_error(read(shared, bea, bea.user.id))
    assert (error.code, error.reason) == (none.code, none.reason)
    for caller in (ana, root):
        assert await read(shared, caller, ana.user.id) == created
    await set_private(shared, ana, private=False)
    assert await read(shared, bea, ana.user.id) == created


async def test_deleted_members_profile_is_not_found(shared: RunningService) -> None:
    ana, root = await shared.signed_in(), await shared.signed_in(Role.ADMIN)
    created = await create(shared, ana)
    deletion = user_pb2.DeleteUserRequest(id=ana.user.id)
    await shared.users.DeleteUser(deletion, metadata=ana.metadata)
    error = await expect_rpc_error(read(shared, root, ana.user.id))
    assert error.reason == "PROFILE_NOT_FOUND"
    restore = user_pb2.UndeleteUserRequest(id=ana.user.id)
    await shared.users.UndeleteUser(restore, metadata=root.metadata)
    assert await read(shared, root, ana.user.id) == created
