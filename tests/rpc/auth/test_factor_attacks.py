"""Attacks on second factors by somebody who knows the password."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from blatam.auth.v1 import auth_pb2
from blatam.auth.v1 import factor_pb2 as pb
from blatam.user.v1 import user_pb2
from server.domain.accounts.users import Role
from tests.authenticator_app import Enrolled, challenge_of, enrolled
from tests.mailbox import token_of
from tests.running import PASSWORD, RunningService
from tests.status import expect_rpc_error

NEW_PASSWORD = "Green8horse"
Change = Callable[[RunningService, Enrolled], Awaitable[None]]


def completing(challenge: pb.Challenge, code: str) -> pb.CompleteLoginRequest:
    token = challenge.challenge_token
    return pb.CompleteLoginRequest(challenge_token=token, totp_code=code)


async def refused(service: RunningService, challenge: pb.Challenge, code: str) -> None:
    call = service.auth.CompleteLogin(completing(challenge, code))
    assert (await expect_rpc_error(call)).reason == "INVALID_CREDENTIALS"


async def test_code_of_another_user_is_refused(shared: RunningService) -> None:
    """It is not used up, and it completes its owner's log-in only."""
    ana, bea = await enrolled(shared), await enrolled(shared)
    code = ana.next_code()
    await refused(shared, await challenge_of(shared, bea), code)
    challenge = await challenge_of(shared, ana)
    tokens = (await shared.auth.CompleteLogin(completing(challenge, code))).tokens
    bearer = (("authorization", f"Bearer {tokens.access_token}"),)
    me = user_pb2.GetCurrentUserRequest()
    answer = await shared.users.GetCurrentUser(me, metadata=bearer)
    assert answer.user.id == ana.user.id


async def test_code_is_used_once_by_calls_at_the_same_time(
    shared: RunningService,
) -> None:
    """Each has a challenge of its own; a second way to replay is Reauthenticate."""
    ana = await enrolled(shared)
    code = ana.next_code()
    challenges = [await challenge_of(shared, ana) for _ in range(3)]
    reauthenticate = pb.ReauthenticateRequest(totp_code=code)
    results = await asyncio.gather(
        *(shared.auth.CompleteLogin(completing(each, code)) for each in challenges),
        shared.auth.Reauthenticate(reauthenticate, metadata=ana.metadata),
        return_exceptions=True,
    )
    assert sum(not isinstance(result, Exception) for result in results) == 1


async def test_code_of_an_older_step_is_refused_after_a_newer_one(
    shared: RunningService,
) -> None:
    ana = await enrolled(shared)
    older = ana.app.now()
    challenge = await challenge_of(shared, ana)
    await shared.auth.CompleteLogin(completing(challenge, ana.next_code()))
    await refused(shared, await challenge_of(shared, ana), older)


async def disable(service: RunningService, who: Enrolled) -> None:
    root = await service.signed_in(Role.ADMIN)
    change = user_pb2.UpdateUserRequest(
        user=user_pb2.User(id=who.user.id), update_mask=FieldMask(paths=["is_active"])
    )
    await service.users.UpdateUser(change, metadata=root.metadata)


async def delete(service: RunningService, who: Enrolled) -> None:
    request = user_pb2.DeleteUserRequest(id=who.user.id)
    await service.users.DeleteUser(request, metadata=who.metadata)


async def reset(service: RunningService, who: Enrolled) -> None:
    request = auth_pb2.RequestPasswordResetRequest(identifier=who.user.username)
    await service.auth.RequestPasswordReset(request)
    token = token_of(await service.mailbox.mail(who.user.email, "new password"))
    change = auth_pb2.ResetPasswordRequest(token=token, new_password=NEW_PASSWORD)
    await service.auth.ResetPassword(change)


async def remove_factor(service: RunningService, who: Enrolled) -> None:
    request = pb.DeleteFactorRequest(id=who.factor_id)
    await service.auth.DeleteFactor(request, metadata=who.metadata)


@pytest.mark.parametrize("change", [disable, delete, reset, remove_factor])
async def test_challenge_is_void_after_a_change_of_the_account(
    shared: RunningService, change: Change
) -> None:
    """The right code opens no session with what was proven before the change."""
    ana = await enrolled(shared)
    challenge = await challenge_of(shared, ana)
    await change(shared, ana)
    await refused(shared, challenge, ana.next_code())


async def test_new_password_does_not_replace_the_second_factor(
    shared: RunningService,
) -> None:
    """Whoever reads the owner's mail still needs the factor."""
    ana = await enrolled(shared)
    await reset(shared, ana)
    challenge = await challenge_of(shared, ana, NEW_PASSWORD)
    await shared.auth.CompleteLogin(completing(challenge, ana.next_code()))


async def test_factor_that_is_not_confirmed_belongs_to_its_user(
    shared: RunningService,
) -> None:
    """Nobody else confirms it, and it completes nothing."""
    ana, bea = await shared.signed_in(), await enrolled(shared)
    created = await shared.auth.CreateTotpFactor(
        pb.CreateTotpFactorRequest(), metadata=ana.metadata
    )
    confirm = pb.ConfirmTotpFactorRequest(id=created.id, totp_code="000000")
    error = await expect_rpc_error(
        shared.auth.ConfirmTotpFactor(confirm, metadata=bea.metadata)
    )
    assert error.reason == "FACTOR_NOT_FOUND"
    reauthenticate = pb.ReauthenticateRequest(totp_code="000000")
    error = await expect_rpc_error(
        shared.auth.Reauthenticate(reauthenticate, metadata=ana.metadata)
    )
    assert error.reason == "INVALID_CREDENTIALS"


async def test_reauthentication_is_limited_by_account_and_address(
    limited: RunningService,
) -> None:
    """With Login: after five of both, the right code is refused, and not used up."""
    ana = await enrolled(limited)  # one log-in
    for code in ("000000", "111111", "222222", "333333"):
        wrong = pb.ReauthenticateRequest(totp_code=code)
        call = limited.auth.Reauthenticate(wrong, metadata=ana.metadata)
        assert (await expect_rpc_error(call)).reason == "INVALID_CREDENTIALS"
    right = pb.ReauthenticateRequest(totp_code=ana.next_code())
    call = limited.auth.Reauthenticate(right, metadata=ana.metadata)
    assert (await expect_rpc_error(call)).reason == "INVALID_CREDENTIALS"
    # another address is another count: the owner is not locked out
    body = {"totpCode": right.totp_code}
    answer = await limited.http.post(
        "/api/v1/auth/reauthenticate", json=body, headers=dict(ana.metadata)
    )
    assert answer.status_code == 200, answer.text


async def test_owner_is_told_of_many_wrong_codes(shared: RunningService) -> None:
    """Whoever sends them knows the password: the owner has to change it."""
    ana = await enrolled(shared)
    for _ in range(2):
        challenge = await challenge_of(shared, ana)
        for _ in range(5):
            await refused(shared, challenge, "000000")
    await shared.mailbox.mail(ana.user.email, "Many failed log-ins")


async def test_guesses_of_the_password_do_not_reach_the_second_step(
    shared: RunningService,
) -> None:
    """No challenge without the password, also for a disabled account's right one."""
    ana = await enrolled(shared)
    await disable(shared, ana)
    login = auth_pb2.LoginRequest(identifier=ana.user.username, password=PASSWORD)
    error = await expect_rpc_error(shared.auth.Login(login))
    assert error.reason == "INVALID_CREDENTIALS"
