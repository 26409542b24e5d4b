"""UserService over gRPC, with the full chain."""

import asyncio
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.rpc import error_details_pb2

from blatam.user.v1 import user_pb2 as pb
from server.domain.accounts.users import Role
from tests.running import PASSWORD, RunningService
from tests.status import expect_rpc_error


def sign_up(**fields: str) -> pb.CreateUserRequest:
    request = {"email": "ana@example.com", "username": "ana", "password": PASSWORD}
    return pb.CreateUserRequest(**request | fields)


@pytest.mark.parametrize(
    ("fields", "violations"),
    [
        ({"email": "ana"}, {("email", "email.form")}),
        ({"email": "a@b.c"}, {("email", "email.form")}),
        ({"email": "ana@example.com\n"}, {("email", "email.form")}),
        ({"email": "a@" + 4 * f"{63 * 'b'}." + "co"}, {("email", "string.max_len")}),
        ({"username": "ab"}, {("username", "string.min_len")}),
        ({"username": "a" * 51}, {("username", "string.max_len")}),
        ({"username": "ana\n"}, {("username", "username.form")}),
        ({"username": "anä"}, {("username", "username.form")}),
        (
            {"username": "ana\0"},
            {("username", "username.form"), ("username", "string.no_nul")},
        ),
        ({"password": "Ab1"}, {("password", "string.min_len")}),
        ({"password": "Ab1" * 43}, {("password", "string.max_len")}),
        ({"password": "Blue7\0horse"}, {("password", "string.no_nul")}),
        ({"password": "bluehorse"}, {("password", "password.upper"),
                                     ("password", "password.digit")}),
        ({"password": "Password1"}, {("password", "password.common")}),
        ({"request_id": "mine"}, {("requestId", "string.uuid")}),
    ],
)  # fmt: skip
async def test_create_user_names_invalid_fields(
    shared: RunningService, fields: dict[str, str], violations: set[tuple[str, str]]
) -> None:
    """R9, R10, R31, R32: each broken rule is reported with the field's JSON name."""
    error = await expect_rpc_error(shared.users.CreateUser(sign_up(**fields)))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == "INVALID_FIELDS"
    assert error.violations == violations
    assert all(field in error.message for field, _ in violations)


async def test_create_user_compares_names_without_case(service: RunningService) -> None:
    """R31: unique without regard to case."""
    await service.users.CreateUser(sign_up())
    for fields, reason in (
        ({"email": "ANA@Example.com", "username": "bea"}, "EMAIL_TAKEN"),
        ({"email": "bea@example.com", "username": "ANA"}, "USERNAME_TAKEN"),
    ):
        error = await expect_rpc_error(service.users.CreateUser(sign_up(**fields)))
        assert error.code is grpc.StatusCode.ALREADY_EXISTS
        assert error.reason == reason


async def test_create_user_is_idempotent_under_concurrent_retries(
    service: RunningService,
) -> None:
    """L14: one user and fifty equal responses; another body is refused."""
    request = sign_up(request_id=str(uuid4()))
    answers = await asyncio.gather(
        *(service.users.CreateUser(request) for _ in range(50))
    )
    assert len({answer.SerializeToString() for answer in answers}) == 1
    other = sign_up(request_id=request.request_id, username="bea")
    error = await expect_rpc_error(service.users.CreateUser(other))
    assert error.reason == "REQUEST_ID_REUSED"
    listed = await service.users.ListUsers(
        pb.ListUsersRequest(), metadata=(await service.signed_in()).metadata
    )
    assert listed.total == 2


async def test_create_user_frees_the_request_id_of_a_refused_request(
    service: RunningService,
) -> None:
    """Only successful requests are remembered."""
    request_id = str(uuid4())
    weak = sign_up(request_id=request_id, password="bluehorse7")
    await expect_rpc_error(service.users.CreateUser(weak))
    response = await service.users.CreateUser(sign_up(request_id=request_id))
    assert response.user.username == "ana"


async def test_get_user_hides_private_fields_from_others(
    service: RunningService,
) -> None:
    """R4: e-mail, role and verification are for the owner and admins."""
    ana = await service.signed_in()
    bea, root = await service.signed_in(), await service.signed_in(Role.ADMIN)
    request = pb.GetUserRequest(id=ana.user.id)
    for caller, sees_private in ((ana, True), (bea, False), (root, True)):
        user = (await service.users.GetUser(request, metadata=caller.metadata)).user
        private = {
            field.name
            for field, _ in user.ListFields()
            if field.name in ("email", "role", "updated_at", "etag")
        }
        assert len(private) == (4 if sees_private else 0)
        assert (user.id, user.username) == (ana.user.id, ana.user.username)
        listed = await service.users.ListUsers(
            pb.ListUsersRequest(username_prefix=ana.user.username),
            metadata=caller.metadata,
        )
        assert list(listed.items) == [user]


async def test_get_user_unknown_id_is_not_found(shared: RunningService) -> None:
    ana = await shared.signed_in()
    request = pb.GetUserRequest(id=999_999)
    error = await expect_rpc_error(shared.users.GetUser(request, metadata=ana.metadata))
    assert error.code is grpc.StatusCode.NOT_FOUND
    info = error.detail(error_details_pb2.ErrorInfo)
    assert (info.reason, dict(info.metadata)) == ("USER_NOT_FOUND", {"id": "999999"})


@pytest.mark.parametrize("user_id", [0, -1, -(2**63)])
async def test_get_user_refuses_ids_below_one(
    shared: RunningService, user_id: int
) -> None:
    ana = await shared.signed_in()
    request = pb.GetUserRequest(id=user_id)
    error = await expect_rpc_error(shared.users.GetUser(request, metadata=ana.metadata))
    assert error.violations == {("id", "int64.gt")}


@pytest.mark.parametrize(
    ("fields", "violation"),
    [
        ({"page": 0}, ("page", "int32.gte")),
        ({"page": -1}, ("page", "int32.gte")),
        ({"page_size": 0}, ("pageSize", "int32.gte_lte")),
        ({"page_size": 101}, ("pageSize", "int32.gte_lte")),
        ({"page": 501}, ("page", "page.reach")),
        ({"sort_by": "email"}, ("sortBy", "string.in")),
        ({"page_token": "forged"}, ("pageToken", "page_token.foreign")),
        ({"username_prefix": "a%"}, ("usernamePrefix", "username.form")),
        ({"email": "a@b.co"}, ("email", "filter.admin_only")),
        ({"role": 3}, ("role", "filter.admin_only")),
        ({"role": 9}, ("role", "enum.defined_only")),
    ],
)
async def test_list_users_names_invalid_fields(
    shared: RunningService, fields: dict[str, object], violation: tuple[str, str]
) -> None:
    ana = await shared.signed_in()
    request = pb.ListUsersRequest(**fields)  # type: ignore[arg-type]  # by table
    error = await expect_rpc_error(
        shared.users.ListUsers(request, metadata=ana.metadata)
    )
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.violations == {violation}


async def test_list_users_by_token_has_every_user_once(service: RunningService) -> None:
    """R29: page by page; another caller cannot use the token."""
    members = [await service.signed_in() for _ in range(5)]
    seen: list[int] = []
    token = ""
    while True:
        request = pb.ListUsersRequest(
            page_size=2, sort_by="-username", page_token=token
        )
        page = await service.users.ListUsers(request, metadata=members[0].metadata)
        seen += [user.id for user in page.items]
        assert (page.total, page.pages, page.size) == (5, 3, 2)
        token = page.next_page_token
        if not page.has_next:
            break
    by_name = sorted(members, key=lambda m: m.user.username, reverse=True)
    assert seen == [member.user.id for member in by_name]
    request = pb.ListUsersRequest(page_size=2, sort_by="-username")
    first = await service.users.ListUsers(request, metadata=members[0].metadata)
    request.page_token = first.next_page_token
    error = await expect_rpc_error(
        service.users.ListUsers(request, metadata=members[1].metadata)
    )
    assert error.violations == {("pageToken", "page_token.foreign")}


async def test_list_users_admin_filters_by_private_fields(
    service: RunningService,
) -> None:
    root = await service.signed_in(Role.ADMIN)
    await service.signed_in()
    request = pb.ListUsersRequest(role=pb.ROLE_ADMIN)
    page = await service.users.ListUsers(request, metadata=root.metadata)
    assert [user.id for user in page.items] == [root.user.id]


def update(
    user_id: int, *paths: str, etag: str = "", request_id: str = "", **values: Any
) -> pb.UpdateUserRequest:
    request = pb.UpdateUserRequest(
        user=pb.User(id=user_id, etag=etag, **values), request_id=request_id
    )
    request.update_mask.paths.extend(paths)
    return request


async def test_update_user_changes_the_username(shared: RunningService) -> None:
    """With a mask or by the fields that are set; a stale etag is refused."""
    ana = await shared.signed_in()
    name = f"{ana.user.username}_x"
    request = update(ana.user.id, "username", username=name)
    first = await shared.users.UpdateUser(request, metadata=ana.metadata)
    assert (first.user.username, first.user.email) == (name, ana.user.email)
    request = update(ana.user.id, username=name + "y", etag=first.user.etag)
    second = await shared.users.UpdateUser(request, metadata=ana.metadata)
    assert second.user.username == name + "y"
    stale = update(ana.user.id, username=name, etag=first.user.etag)
    error = await expect_rpc_error(
        shared.users.UpdateUser(stale, metadata=ana.metadata)
    )
    assert error.code is grpc.StatusCode.ABORTED
    info = error.detail(error_details_pb2.ErrorInfo)
    assert dict(info.metadata) == {"etag": second.user.etag}


@pytest.mark.parametrize(
    ("paths", "values", "violation"),
    [
        (["role"], {"role": 3}, ("user.role", "update_mask.not_writable")),
        (["email"], {"email": "x@x.co"}, ("user.email", "update_mask.not_writable")),
        (["isActive"], {}, ("user.isActive", "update_mask.not_writable")),
        (["*"], {"username": "new"}, ("user.*", "update_mask.not_writable")),
        (["user.role"], {"role": 3}, ("user.user.role", "update_mask.not_writable")),
        (["id"], {}, ("user.id", "update_mask.not_writable")),
        (["email_verified"], {}, ("user.emailVerified", "update_mask.not_writable")),
        ([], {"role": 3}, ("user.role", "update_mask.not_writable")),
        ([], {}, ("updateMask", "update_mask.required")),
        (["username"], {}, ("user.username", "update_mask.empty")),
        (["username"], {"username": "x!"}, ("user.username", "username.form")),
    ],
)
async def test_update_user_refuses_unwritable_fields(
    shared: RunningService,
    paths: list[str],
    values: dict[str, Any],
    violation: tuple[str, str],
) -> None:
    """R28: by body or mask, in any spelling of the field."""
    ana = await shared.signed_in()
    request = update(ana.user.id, *paths, **values)
    error = await expect_rpc_error(
        shared.users.UpdateUser(request, metadata=ana.metadata)
    )
    assert violation in error.violations
    me = await shared.users.GetCurrentUser(
        pb.GetCurrentUserRequest(), metadata=ana.metadata
    )
    assert me.user == ana.user


async def test_update_user_can_be_sent_back_as_it_was_read(
    shared: RunningService,
) -> None:
    """AIP-203: without a mask, output-only fields are ignored."""
    root = await shared.signed_in(Role.ADMIN)
    user = (await shared.signed_in()).user
    request = pb.GetUserRequest(id=user.id)
    sent = (await shared.users.GetUser(request, metadata=root.metadata)).user
    sent.username = f"{user.username}_new"
    call = shared.users.UpdateUser(
        pb.UpdateUserRequest(user=sent), metadata=root.metadata
    )
    changed = (await call).user
    assert (changed.username, changed.role) == (sent.username, sent.role)


@pytest.mark.parametrize("change", ["disable", "demote", "delete"])
async def test_access_ends_with_disabling_demotion_and_deletion(
    shared: RunningService, change: str
) -> None:
    """R22: the tokens of the user are refused at once."""
    root, other = await shared.signed_in(Role.ADMIN), await shared.signed_in(Role.ADMIN)
    me = pb.GetCurrentUserRequest()
    await shared.users.GetCurrentUser(me, metadata=other.metadata)
    if change == "delete":
        deletion = pb.DeleteUserRequest(id=other.user.id)
        await shared.users.DeleteUser(deletion, metadata=root.metadata)
    else:
        request = (
            update(other.user.id, "is_active")
            if change == "disable"
            else update(other.user.id, role=pb.ROLE_STUDENT)
        )
        await shared.users.UpdateUser(request, metadata=root.metadata)
    error = await expect_rpc_error(
        shared.users.GetCurrentUser(me, metadata=other.metadata)
    )
    assert error.reason == "TOKEN_INVALID"


async def test_deleted_user_can_be_restored(shared: RunningService) -> None:
    """A deleted account is not found and keeps its name; an admin restores it."""
    ana, root = await shared.signed_in(), await shared.signed_in(Role.ADMIN)
    await shared.users.DeleteUser(
        pb.DeleteUserRequest(id=ana.user.id), metadata=ana.metadata
    )
    get = pb.GetUserRequest(id=ana.user.id)
    error = await expect_rpc_error(shared.users.GetUser(get, metadata=root.metadata))
    assert error.reason == "USER_NOT_FOUND"
    again = sign_up(username=ana.user.username, email="other@x.co")
    assert (
        await expect_rpc_error(shared.users.CreateUser(again))
    ).reason == "USERNAME_TAKEN"
    request = pb.UndeleteUserRequest(id=ana.user.id, request_id=str(uuid4()))
    back = [
        await shared.users.UndeleteUser(request, metadata=root.metadata)
        for _ in range(2)
    ]
    assert back[0] == back[1]
    assert await shared.log_in(ana.user.username)


async def test_update_user_is_idempotent(shared: RunningService) -> None:
    ana = await shared.signed_in()
    request = update(
        ana.user.id, username=f"{ana.user.username}_z", request_id=str(uuid4())
    )
    answers = await asyncio.gather(
        *(shared.users.UpdateUser(request, metadata=ana.metadata) for _ in range(10))
    )
    assert {answer.user.etag for answer in answers} == {"2"}


async def test_batch_get_users_keeps_the_order(shared: RunningService) -> None:
    """Missing ids are listed; others' private fields are hidden."""
    ana, bea = await shared.signed_in(), await shared.signed_in()
    request = pb.BatchGetUsersRequest(ids=[bea.user.id, 999_999, ana.user.id])
    response = await shared.users.BatchGetUsers(request, metadata=ana.metadata)
    assert [user.id for user in response.users] == [bea.user.id, ana.user.id]
    assert [bool(user.email) for user in response.users] == [False, True]
    assert list(response.missing_ids) == [999_999]
    faulty = pb.BatchGetUsersRequest(ids=[0] * 1_000)
    error = await expect_rpc_error(
        shared.users.BatchGetUsers(faulty, metadata=ana.metadata)
    )
    assert error.reason == "INVALID_FIELDS"  # in bounded metadata
    assert len(error.message) < 500
