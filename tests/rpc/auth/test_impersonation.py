"""Admins who act as users: what they get, what they may not do, and what ends it."""

from collections.abc import Awaitable, Callable
from typing import Any

import jwt
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from blatam.auth.v1 import auth_pb2 as pb
from blatam.auth.v1 import factor_pb2, identity_pb2
from blatam.policy.v1.policy_pb2 import ACCESS_PUBLIC
from blatam.user.v1 import user_pb2
from server.domain.accounts.users import Role
from server.rpc import contract
from tests.authenticator_app import Enrolled, enrol, enrolled
from tests.logs import captured_lines
from tests.running import PASSWORD, RunningService, SignedInUser
from tests.status import RpcError, expect_rpc_error

ME = user_pb2.GetCurrentUserRequest()
Metadata = tuple[tuple[str, str], ...]


async def admin(service: RunningService) -> Enrolled:
    """Return an admin whose log-in had two factors."""
    return await enrol(service, await service.signed_in(Role.ADMIN))


async def impersonate(
    service: RunningService, root: Enrolled, user: user_pb2.User
) -> pb.ImpersonateUserResponse:
    request = pb.ImpersonateUserRequest(id=user.id)
    return await service.auth.ImpersonateUser(request, metadata=root.metadata)


async def refused(
    service: RunningService, root: Enrolled, user: user_pb2.User
) -> RpcError:
    return await expect_rpc_error(impersonate(service, root, user))


def bearing(token: pb.ImpersonateUserResponse) -> Metadata:
    return (("authorization", f"Bearer {token.access_token}"),)


async def is_ended(service: RunningService, token: pb.ImpersonateUserResponse) -> bool:
    call = service.users.GetCurrentUser(ME, metadata=bearing(token))
    return (await expect_rpc_error(call)).reason == "TOKEN_INVALID"


async def test_admin_acts_as_a_user(shared: RunningService) -> None:
    """With the user's rights only; the token names both (RFC 8693)."""
    root, ana = await admin(shared), await shared.signed_in()
    token = await impersonate(shared, root, ana.user)
    assert (token.token_type, token.expires_in) == ("Bearer", 900)
    claims = jwt.decode(token.access_token, options={"verify_signature": False})
    assert (claims["sub"], claims["act"]) == (
        str(ana.user.id),
        {"sub": str(root.user.id)},
    )
    assert (claims["acr"], claims["sid"]) == ("aal2", token.session_id)
    assert claims["exp"] - claims["iat"] == 900
    me = await shared.users.GetCurrentUser(ME, metadata=bearing(token))
    assert me.user.id == ana.user.id
    error = await expect_rpc_error(
        shared.auth.ListAuditEvents(
            pb.ListAuditEventsRequest(), metadata=bearing(token)
        )
    )
    assert error.reason == "ACCESS_DENIED"
    verified = await shared.auth.VerifyToken(
        pb.VerifyTokenRequest(token=token.access_token), metadata=root.metadata
    )
    assert verified.actor_id == root.user.id
    mail = await shared.mailbox.mail(ana.user.email, "acted as you")
    assert "15 minutes" in mail.get_content()
    assert "A log-in from a new device" not in shared.mailbox.subjects(ana.user.email)


async def test_admin_acts_as_a_user_over_rest(shared: RunningService) -> None:
    root, ana = await admin(shared), await shared.signed_in()
    answer = await shared.http.post(
        f"/api/v1/users/{ana.user.id}:impersonate",
        json={},
        headers=dict(root.metadata),
    )
    assert answer.status_code == 200
    assert "refreshToken" not in answer.json()
    headers = {"Authorization": f"Bearer {answer.json()['accessToken']}"}
    me = await shared.http.get("/api/v1/users/me", headers=headers)
    assert me.json()["username"] == ana.user.username
    ended = await shared.http.post("/api/v1/auth/logout-all", headers=headers)
    assert ended.status_code == 403
    assert ended.json()["errorCode"] == "IMPERSONATION_FORBIDDEN"
    nested = await shared.http.post(
        f"/api/v1/users/{ana.user.id}:impersonate", json={}, headers=headers
    )
    assert nested.status_code == 403


async def test_who_cannot_be_impersonated(shared: RunningService) -> None:
    """Another admin, oneself, and accounts that cannot log in."""
    root, other = await admin(shared), await shared.signed_in(Role.ADMIN)
    for user in (other.user, root.user):
        error = await refused(shared, root, user)
        assert error.reason == "IMPERSONATION_FORBIDDEN"
    disabled, deleted = await shared.sign_up(), await shared.signed_in()
    await shared.users.UpdateUser(
        user_pb2.UpdateUserRequest(
            user=user_pb2.User(id=disabled.id),
            update_mask=FieldMask(paths=["is_active"]),
        ),
        metadata=root.metadata,
    )
    await shared.users.DeleteUser(
        user_pb2.DeleteUserRequest(id=deleted.user.id), metadata=deleted.metadata
    )
    for user in (disabled, deleted.user, user_pb2.User(id=2**40)):
        error = await refused(shared, root, user)
        assert error.reason == "USER_NOT_FOUND"


async def test_who_cannot_impersonate(shared: RunningService) -> None:
    """Users, admins with one factor, and admins who act as somebody."""
    ana, bea = await shared.signed_in(), await enrolled(shared)
    error = await refused(shared, bea, ana.user)
    assert error.reason == "ACCESS_DENIED"
    root = await admin(shared)
    acting = bearing(await impersonate(shared, root, ana.user))
    request = pb.ImpersonateUserRequest(id=bea.user.id)
    error = await expect_rpc_error(
        shared.auth.ImpersonateUser(request, metadata=acting)
    )
    assert error.reason == "ACCESS_DENIED"
    weak = await shared.signed_in(Role.ADMIN)
    error = await expect_rpc_error(
        shared.auth.ImpersonateUser(request, metadata=weak.metadata)
    )
    assert error.reason == "STEP_UP_REQUIRED"


async def test_impersonation_cannot_change_how_the_user_logs_in(
    shared: RunningService,
) -> None:
    """Nor end their sessions, nor delete, export or erase the account."""
    root, ana = await admin(shared), await shared.signed_in()
    token = bearing(await impersonate(shared, root, ana.user))
    auth, users, user_id = shared.auth, shared.users, ana.user.id
    calls: list[tuple[Callable[..., Any], Any]] = [
        (auth.LogoutAll, pb.LogoutAllRequest()),
        (auth.RevokeSession, pb.RevokeSessionRequest(id=ana.tokens.session_id)),
        (
            auth.ChangePassword,
            pb.ChangePasswordRequest(
                current_password=PASSWORD, new_password="Green8horse"
            ),
        ),
        (
            auth.ChangeEmail,
            pb.ChangeEmailRequest(
                new_email="thief@example.com", current_password=PASSWORD
            ),
        ),
        (auth.RequestEmailVerification, pb.RequestEmailVerificationRequest()),
        (auth.Reauthenticate, factor_pb2.ReauthenticateRequest(password=PASSWORD)),
        (auth.CreateTotpFactor, factor_pb2.CreateTotpFactorRequest()),
        (
            auth.ConfirmTotpFactor,
            factor_pb2.ConfirmTotpFactorRequest(id=1, totp_code="000000"),
        ),
        (auth.CreatePasskey, factor_pb2.CreatePasskeyRequest()),
        (auth.DeleteFactor, factor_pb2.DeleteFactorRequest(id=1)),
        (
            auth.RegenerateRecoveryCodes,
            factor_pb2.RegenerateRecoveryCodesRequest(),
        ),
        (auth.UnlinkIdentity, identity_pb2.UnlinkIdentityRequest(id=1)),
        (
            users.EraseUser,
            user_pb2.EraseUserRequest(id=user_id, current_password=PASSWORD),
        ),
        (users.DeleteUser, user_pb2.DeleteUserRequest(id=user_id)),
        (
            users.UpdateUser,
            user_pb2.UpdateUserRequest(
                user=user_pb2.User(id=user_id, email="thief@example.com"),
                update_mask=FieldMask(paths=["email"]),
            ),
        ),
    ]
    for method, request in calls:
        error = await expect_rpc_error(method(request, metadata=token))
        assert error.reason == "IMPERSONATION_FORBIDDEN", request
    export = users.ExportUser(user_pb2.ExportUserRequest(id=user_id), metadata=token)
    error = await expect_rpc_error(export.read())
    assert error.reason == "IMPERSONATION_FORBIDDEN"


def test_every_change_of_log_ins_refuses_impersonation() -> None:
    """A new RPC that is audited as such a change must be marked, too."""
    prefixes = (
        *("password.", "email.", "factor.", "passkey.", "recovery_codes."),
        *("identity.", "session", "user.deleted", "user.erased", "user.exported"),
    )
    allowed = {"Logout"}  # ends the impersonation itself
    unmarked = {
        method.name.rpartition("/")[2]
        for method in contract.methods()
        if method.policy.access != ACCESS_PUBLIC
        if method.policy.audit.startswith(prefixes)
        if not (method.policy.refuses_impersonation or method.policy.max_auth_age)
    }
    assert unmarked == allowed


async def test_user_sees_and_ends_the_impersonation(shared: RunningService) -> None:
    """It is a session as any other, but for the admin's address and device."""
    root, ana = await admin(shared), await shared.signed_in()
    token = await impersonate(shared, root, ana.user)
    listed = await shared.auth.ListSessions(
        pb.ListSessionsRequest(), metadata=ana.metadata
    )
    (session,) = [each for each in listed.sessions if each.actor_id]
    assert (session.id, session.actor_id) == (token.session_id, root.user.id)
    assert (session.address, session.device) == ("", "")
    own = [each.id for each in listed.sessions if not each.actor_id]
    assert own == [ana.tokens.session_id]
    await shared.auth.RevokeSession(
        pb.RevokeSessionRequest(id=token.session_id), metadata=ana.metadata
    )
    assert await is_ended(shared, token)


async def log_out_user(s: RunningService, ana: SignedInUser, _: Enrolled) -> None:
    await s.auth.LogoutAll(pb.LogoutAllRequest(), metadata=ana.metadata)


async def log_out_admin(s: RunningService, _: SignedInUser, root: Enrolled) -> None:
    await s.auth.LogoutAll(pb.LogoutAllRequest(), metadata=root.metadata)


async def demote_admin(s: RunningService, _: SignedInUser, root: Enrolled) -> None:
    other = await s.signed_in(Role.ADMIN)
    request = user_pb2.UpdateUserRequest(
        user=user_pb2.User(id=root.user.id, role=user_pb2.ROLE_STUDENT),
        update_mask=FieldMask(paths=["role"]),
    )
    await s.users.UpdateUser(request, metadata=other.metadata)


async def disable_user(s: RunningService, ana: SignedInUser, root: Enrolled) -> None:
    request = user_pb2.UpdateUserRequest(
        user=user_pb2.User(id=ana.user.id), update_mask=FieldMask(paths=["is_active"])
    )
    await s.users.UpdateUser(request, metadata=root.metadata)


@pytest.mark.parametrize(
    "end", [log_out_user, log_out_admin, demote_admin, disable_user]
)
async def test_impersonation_ends_with_its_user_and_its_admin(
    shared: RunningService,
    end: Callable[[RunningService, SignedInUser, Enrolled], Awaitable[None]],
) -> None:
    root, ana = await admin(shared), await shared.signed_in()
    token = await impersonate(shared, root, ana.user)
    await shared.users.GetCurrentUser(ME, metadata=bearing(token))
    await end(shared, ana, root)
    assert await is_ended(shared, token)


async def test_log_out_ends_the_impersonation_only(shared: RunningService) -> None:
    root, ana = await admin(shared), await shared.signed_in()
    token = await impersonate(shared, root, ana.user)
    await shared.auth.Logout(pb.LogoutRequest(), metadata=bearing(token))
    assert await is_ended(shared, token)
    await shared.users.GetCurrentUser(ME, metadata=ana.metadata)
    await shared.users.GetCurrentUser(ME, metadata=root.metadata)


async def test_audit_log_and_service_log_name_both(shared: RunningService) -> None:
    root, ana = await admin(shared), await shared.signed_in()
    other = await shared.sign_up()
    token = await impersonate(shared, root, ana.user)
    await expect_rpc_error(
        shared.auth.LogoutAll(pb.LogoutAllRequest(), metadata=bearing(token))
    )
    with captured_lines(actor=f"user:{root.user.id}") as lines:
        await shared.users.FollowUser(
            user_pb2.FollowUserRequest(id=other.id), metadata=bearing(token)
        )
    assert [line["caller"] for line in lines] == [f"user:{ana.user.id}"]
    await shared.auth.Logout(pb.LogoutRequest(), metadata=bearing(token))
    events = await shared.auth.ListAuditEvents(
        pb.ListAuditEventsRequest(user_id=ana.user.id), metadata=root.metadata
    )
    by_admin = [
        (event.event, event.outcome)
        for event in events.items
        if event.actor == f"user:{root.user.id}"
    ]
    assert by_admin == [
        ("session.ended", "OK"),
        ("sessions.ended", "IMPERSONATION_FORBIDDEN"),
        ("user.impersonated", "OK"),
    ]
