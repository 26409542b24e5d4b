"""UserService over gRPC, with the full chain."""

import asyncio
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.rpc import error_details_pb2

from blatam.user.v1 import user_pb2 as pb
from server.domain.accounts.users import Role
from tests.running import PASSWORD, Running
from tests.status import refusal


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
async def test_bad_sign_ups_name_field_and_rule(
    shared: Running, fields: dict[str, str], violations: set[tuple[str, str]]
) -> None:
    """R9, R10, R31, R32: every rule is told, by the field's JSON name."""
    refused = await refusal(shared.users.CreateUser(sign_up(**fields)))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.reason == "INVALID_FIELDS"
    assert refused.violations == violations
    assert all(field in refused.message for field, _ in violations)


async def test_taken_in_any_case(service: Running) -> None:
    """R31: unique without regard to case."""
    await service.users.CreateUser(sign_up())
    for fields, reason in (
        ({"email": "ANA@Example.com", "username": "bea"}, "EMAIL_TAKEN"),
        ({"email": "bea@example.com", "username": "ANA"}, "USERNAME_TAKEN"),
    ):
        refused = await refusal(service.users.CreateUser(sign_up(**fields)))
        assert refused.code is grpc.StatusCode.ALREADY_EXISTS
        assert refused.reason == reason


async def test_fifty_retries_of_one_request_make_one_user(service: Running) -> None:
    """L14: one user and fifty equal answers; another body is told apart."""
    request = sign_up(request_id=str(uuid4()))
    answers = await asyncio.gather(
        *(service.users.CreateUser(request) for _ in range(50))
    )
    assert len({answer.SerializeToString() for answer in answers}) == 1
    other = sign_up(request_id=request.request_id, username="bea")
    refused = await refusal(service.users.CreateUser(other))
    assert refused.reason == "REQUEST_ID_REUSED"
    listed = await service.users.ListUsers(
        pb.ListUsersRequest(), metadata=(await service.signed_in()).metadata
    )
    assert listed.total == 2


async def test_a_refused_request_id_may_be_used_again(service: Running) -> None:
    """Only what was done is remembered; a refusal costs nothing."""
    request_id = str(uuid4())
    weak = sign_up(request_id=request_id, password="bluehorse7")
    await refusal(service.users.CreateUser(weak))
    made = await service.users.CreateUser(sign_up(request_id=request_id))
    assert made.user.username == "ana"


async def test_others_see_the_public_part(service: Running) -> None:
    """R4: e-mail, role and verification are for the owner and admins."""
    ana = await service.signed_in()
    bea, root = await service.signed_in(), await service.signed_in(Role.ADMIN)
    wanted = pb.GetUserRequest(id=ana.user.id)
    for who, whole in ((ana, True), (bea, False), (root, True)):
        found = (await service.users.GetUser(wanted, metadata=who.metadata)).user
        private = {
            field.name
            for field, _ in found.ListFields()
            if field.name in ("email", "role", "updated_at", "etag")
        }
        assert len(private) == (4 if whole else 0)
        assert (found.id, found.username) == (ana.user.id, ana.user.username)
        listed = await service.users.ListUsers(
            pb.ListUsersRequest(username_prefix=ana.user.username),
            metadata=who.metadata,
        )
        assert list(listed.items) == [found]


async def test_reading_whom_there_is_not(shared: Running) -> None:
    ana = await shared.signed_in()
    request = pb.GetUserRequest(id=999_999)
    refused = await refusal(shared.users.GetUser(request, metadata=ana.metadata))
    assert refused.code is grpc.StatusCode.NOT_FOUND
    info = refused.detail(error_details_pb2.ErrorInfo)
    assert (info.reason, dict(info.metadata)) == ("USER_NOT_FOUND", {"id": "999999"})


@pytest.mark.parametrize("user_id", [0, -1, -(2**63)])
async def test_ids_are_positive(shared: Running, user_id: int) -> None:
    ana = await shared.signed_in()
    request = pb.GetUserRequest(id=user_id)
    refused = await refusal(shared.users.GetUser(request, metadata=ana.metadata))
    assert refused.violations == {("id", "int64.gt")}


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
async def test_bad_listings(
    shared: Running, fields: dict[str, object], violation: tuple[str, str]
) -> None:
    ana = await shared.signed_in()
    request = pb.ListUsersRequest(**fields)  # type: ignore[arg-type]  # by table
    refused = await refusal(shared.users.ListUsers(request, metadata=ana.metadata))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.violations == {violation}


async def test_following_tokens_gives_everybody_once(service: Running) -> None:
    """R29: page by page, and a token is of no use to somebody else."""
    people = [await service.signed_in() for _ in range(5)]
    seen: list[int] = []
    token = ""
    while True:
        request = pb.ListUsersRequest(
            page_size=2, sort_by="-username", page_token=token
        )
        page = await service.users.ListUsers(request, metadata=people[0].metadata)
        seen += [user.id for user in page.items]
        assert (page.total, page.pages, page.size) == (5, 3, 2)
        token = page.next_page_token
        if not page.has_next:
            break
    by_name = sorted(people, key=lambda who: who.user.username, reverse=True)
    assert seen == [who.user.id for who in by_name]
    request = pb.ListUsersRequest(page_size=2, sort_by="-username")
    first = await service.users.ListUsers(request, metadata=people[0].metadata)
    request.page_token = first.next_page_token
    refused = await refusal(
        service.users.ListUsers(request, metadata=people[1].metadata)
    )
    assert refused.violations == {("pageToken", "page_token.foreign")}


async def test_admins_filter_by_private_fields(service: Running) -> None:
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


async def test_a_name_is_changed(shared: Running) -> None:
    """With a mask, and without one by what is set; a stale etag is refused."""
    ana = await shared.signed_in()
    name = f"{ana.user.username}_x"
    request = update(ana.user.id, "username", username=name)
    first = await shared.users.UpdateUser(request, metadata=ana.metadata)
    assert (first.user.username, first.user.email) == (name, ana.user.email)
    request = update(ana.user.id, username=name + "y", etag=first.user.etag)
    second = await shared.users.UpdateUser(request, metadata=ana.metadata)
    assert second.user.username == name + "y"
    stale = update(ana.user.id, username=name, etag=first.user.etag)
    refused = await refusal(shared.users.UpdateUser(stale, metadata=ana.metadata))
    assert refused.code is grpc.StatusCode.ABORTED
    info = refused.detail(error_details_pb2.ErrorInfo)
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
async def test_nobody_writes_what_is_not_theirs(
    shared: Running,
    paths: list[str],
    values: dict[str, Any],
    violation: tuple[str, str],
) -> None:
    """R28: by body or mask, however the field is spelt."""
    ana = await shared.signed_in()
    request = update(ana.user.id, *paths, **values)
    refused = await refusal(shared.users.UpdateUser(request, metadata=ana.metadata))
    assert violation in refused.violations
    me = await shared.users.GetCurrentUser(
        pb.GetCurrentUserRequest(), metadata=ana.metadata
    )
    assert me.user == ana.user


@pytest.mark.parametrize("change", ["disable", "demote", "delete"])
async def test_rights_end_with_their_reason(shared: Running, change: str) -> None:
    """R22: disabled, demoted or deleted, a user's tokens are refused at once."""
    root, other = await shared.signed_in(Role.ADMIN), await shared.signed_in(Role.ADMIN)
    me = pb.GetCurrentUserRequest()
    await shared.users.GetCurrentUser(me, metadata=other.metadata)
    if change == "delete":
        gone = pb.DeleteUserRequest(id=other.user.id)
        await shared.users.DeleteUser(gone, metadata=root.metadata)
    else:
        request = (
            update(other.user.id, "is_active")
            if change == "disable"
            else update(other.user.id, role=pb.ROLE_STUDENT)
        )
        await shared.users.UpdateUser(request, metadata=root.metadata)
    refused = await refusal(shared.users.GetCurrentUser(me, metadata=other.metadata))
    assert refused.reason == "TOKEN_INVALID"


async def test_deleted_and_brought_back(shared: Running) -> None:
    """Gone to everybody, its name reserved; an admin brings it back."""
    ana, root = await shared.signed_in(), await shared.signed_in(Role.ADMIN)
    await shared.users.DeleteUser(
        pb.DeleteUserRequest(id=ana.user.id), metadata=ana.metadata
    )
    wanted = pb.GetUserRequest(id=ana.user.id)
    refused = await refusal(shared.users.GetUser(wanted, metadata=root.metadata))
    assert refused.reason == "USER_NOT_FOUND"
    again = sign_up(username=ana.user.username, email="other@x.co")
    assert (await refusal(shared.users.CreateUser(again))).reason == "USERNAME_TAKEN"
    request = pb.UndeleteUserRequest(id=ana.user.id, request_id=str(uuid4()))
    back = [
        await shared.users.UndeleteUser(request, metadata=root.metadata)
        for _ in range(2)
    ]
    assert back[0] == back[1]
    assert await shared.log_in(ana.user.username)


async def test_a_repeated_update_changes_once(shared: Running) -> None:
    ana = await shared.signed_in()
    request = update(
        ana.user.id, username=f"{ana.user.username}_z", request_id=str(uuid4())
    )
    answers = await asyncio.gather(
        *(shared.users.UpdateUser(request, metadata=ana.metadata) for _ in range(10))
    )
    assert {answer.user.etag for answer in answers} == {"2"}


async def test_many_at_once(shared: Running) -> None:
    """In the order asked for, the missing ones listed, others' public part only."""
    ana, bea = await shared.signed_in(), await shared.signed_in()
    request = pb.BatchGetUsersRequest(ids=[bea.user.id, 999_999, ana.user.id])
    found = await shared.users.BatchGetUsers(request, metadata=ana.metadata)
    assert [user.id for user in found.users] == [bea.user.id, ana.user.id]
    assert [bool(user.email) for user in found.users] == [False, True]
    assert list(found.missing_ids) == [999_999]
    faulty = pb.BatchGetUsersRequest(ids=[0] * 1_000)
    told = await refusal(shared.users.BatchGetUsers(faulty, metadata=ana.metadata))
    assert told.reason == "INVALID_FIELDS"  # and not too much for gRPC to tell
    assert len(told.message) < 500
