"""Calls that need a recent log-in or a second factor, by the rule and over REST."""

from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from blatam.auth.v1 import auth_pb2 as pb
from blatam.policy.v1.policy_pb2 import (
    ACCESS_PUBLIC,
    ACCESS_SIGNED_IN,
    FACTOR_LEVEL_TWO,
    MethodPolicy,
)
from blatam.user.v1 import user_pb2
from server.domain.accounts.users import Role
from server.domain.callers import Caller
from server.domain.errors import ImpersonationForbidden, StepUpRequired
from server.rpc.call import Call, Method
from server.rpc.interceptors.step_up import require_step_up
from tests.fakes import NOON, Clock
from tests.running import RunningService, running
from tests.status import expect_rpc_error

NOW = int(NOON.timestamp())
FRESH = Caller(7, "s", role=Role.ADMIN, auth_time=NOW - 600, factor_level=2)
OLD = Caller(7, "s", role=Role.ADMIN, auth_time=NOW - 601, factor_level=2)
ONE_FACTOR = Caller(7, "s", role=Role.ADMIN, auth_time=NOW, factor_level=1)
SERVICE = Caller(service_id=3)
RECENT = MethodPolicy(access=ACCESS_SIGNED_IN, max_auth_age=600)
TWO = MethodPolicy(access=ACCESS_SIGNED_IN, min_factor=FACTOR_LEVEL_TWO)
CHANGE = MethodPolicy(
    access=ACCESS_SIGNED_IN, max_auth_age=600, step_up_fields=["user.role"]
)
ME = user_pb2.GetCurrentUserRequest()


def method_of(
    policy: MethodPolicy, request: Any = user_pb2.UpdateUserRequest
) -> Method:
    return Method("/t.S/M", request, policy, streams=False)


async def passed(call: Call) -> bytes:
    return b"passed"


async def check(
    policy: MethodPolicy, caller: Caller, *roles: Role, request: Any = None
) -> None:
    """Make a call with this caller. Raises what refuses it."""
    method = method_of(policy)
    interceptor = require_step_up(method, roles, Clock())
    assert interceptor
    body = request.SerializeToString() if request else b""
    call = Call(method, body, {}, "192.0.2.7", "id", caller=caller)
    assert await interceptor(call, passed) == b"passed"


async def test_log_in_within_the_age_is_accepted() -> None:
    await check(RECENT, FRESH)
    await check(RECENT, SERVICE)


async def test_older_log_in_is_refused_with_the_age() -> None:
    with pytest.raises(StepUpRequired) as refusal:
        await check(RECENT, OLD)
    assert refusal.value.metadata == {"max_age": "600"}


async def test_log_in_with_one_factor_is_refused_with_the_level() -> None:
    await check(TWO, OLD)
    with pytest.raises(StepUpRequired) as refusal:
        await check(TWO, ONE_FACTOR)
    assert refusal.value.metadata == {"acr_values": "aal2"}


async def test_admin_who_acts_as_a_user_is_refused() -> None:
    acting = Caller(7, "s", auth_time=NOW, factor_level=2, actor_id=1)
    with pytest.raises(ImpersonationForbidden):
        await check(RECENT, acting)


async def test_admin_who_acts_as_a_user_is_refused_what_is_marked() -> None:
    """Where no recent log-in is needed; nobody else is."""
    marked = MethodPolicy(access=ACCESS_SIGNED_IN, refuses_impersonation=True)
    with pytest.raises(ImpersonationForbidden):
        await check(marked, Caller(7, "s", actor_id=1))
    await check(marked, Caller(7, "s"))
    await check(marked, SERVICE)


def changing(*paths: str, **values: Any) -> user_pb2.UpdateUserRequest:
    return user_pb2.UpdateUserRequest(
        user=user_pb2.User(**values), update_mask=FieldMask(paths=paths)
    )


@pytest.mark.parametrize(
    "request_",
    [
        changing("role"),
        changing("username", "role"),
        changing("user.role"),
        changing("Role"),
        changing("*"),
        changing(role=user_pb2.ROLE_ADMIN),
    ],
)
async def test_change_of_a_field_needs_a_recent_log_in(
    request_: user_pb2.UpdateUserRequest,
) -> None:
    """Whatever spelling the mask has, and without a mask."""
    with pytest.raises(StepUpRequired):
        await check(CHANGE, OLD, request=request_)
    await check(CHANGE, FRESH, request=request_)


@pytest.mark.parametrize(
    "request_",
    [
        changing("username", username="ana"),
        changing(username="ana"),
        # the resource as it was read, of which the mask names one field
        changing("username", username="ana", role=user_pb2.ROLE_ADMIN),
    ],
)
async def test_change_of_another_field_needs_no_recent_log_in(
    request_: user_pb2.UpdateUserRequest,
) -> None:
    await check(CHANGE, OLD, request=request_)


async def test_role_that_needs_a_second_factor() -> None:
    """Whatever the RPC, but for those of the enrolment."""
    anything = MethodPolicy(access=ACCESS_SIGNED_IN)
    with pytest.raises(StepUpRequired) as refusal:
        await check(anything, ONE_FACTOR, Role.ADMIN)
    assert refusal.value.metadata == {"acr_values": "aal2"}
    await check(anything, ONE_FACTOR, Role.TEACHER)
    await check(anything, FRESH, Role.ADMIN)
    await check(anything, SERVICE, Role.ADMIN)
    enrolment = MethodPolicy(
        access=ACCESS_SIGNED_IN, max_auth_age=600, during_enrolment=True
    )
    await check(enrolment, ONE_FACTOR, Role.ADMIN)


@pytest.mark.parametrize(
    "policy",
    [MethodPolicy(access=ACCESS_SIGNED_IN), MethodPolicy(access=ACCESS_PUBLIC)],
)
def test_rpc_without_a_rule_has_no_interceptor(policy: MethodPolicy) -> None:
    """A warm GetUser costs nothing more."""
    assert require_step_up(method_of(policy), (), Clock()) is None


async def test_step_up_is_asked_for_over_both_transports(
    shared: RunningService,
) -> None:
    """RFC 9470: the reason with its metadata, and the header of REST."""
    root = await shared.signed_in(Role.ADMIN)
    call = shared.auth.ImpersonateUser(
        pb.ImpersonateUserRequest(id=root.user.id), metadata=root.metadata
    )
    error = await expect_rpc_error(call)
    assert error.code is grpc.StatusCode.UNAUTHENTICATED
    assert error.reason == "STEP_UP_REQUIRED"
    answer = await shared.http.post(
        f"/api/v1/users/{root.user.id}:impersonate", json={}, headers=root.headers
    )
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == (
        'Bearer error="insufficient_user_authentication", acr_values="aal2", '
        'max_age="600"'
    )
    info = next(d for d in answer.json()["details"] if "reason" in d)
    assert info["metadata"] == {"acr_values": "aal2", "max_age": "600"}


async def test_user_whose_role_needs_a_factor_can_only_enrol(
    database_url: str, redis_url: str
) -> None:
    async with running(database_url, redis_url, mfa_required_roles="admin") as service:
        root = await service.signed_in(Role.ADMIN)
        await service.users.GetCurrentUser(ME, metadata=root.metadata)
        listing = pb.ListSessionsRequest()
        error = await expect_rpc_error(
            service.auth.ListSessions(listing, metadata=root.metadata)
        )
        assert error.reason == "STEP_UP_REQUIRED"
        ana = await service.signed_in()
        await service.auth.ListSessions(listing, metadata=ana.metadata)
