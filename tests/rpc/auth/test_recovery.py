"""Mails of an account: resets, verification of addresses, and notices."""

import asyncio
from email.message import EmailMessage

import grpc
import pytest

from blatam.auth.v1 import auth_pb2 as pb
from blatam.user.v1 import user_pb2
from server.domain.accounts.users import Role
from tests.authenticator_app import challenge_of, enrolled
from tests.mailbox import link_of, token_of
from tests.running import PASSWORD, RunningService, SignedInUser
from tests.status import expect_rpc_error

NEW = "Green8horse"
ME = user_pb2.GetCurrentUserRequest()


def login(identifier: str, password: str = PASSWORD) -> pb.LoginRequest:
    return pb.LoginRequest(identifier=identifier, password=password)


async def reset_token_of(
    service: RunningService, user: user_pb2.User, number: int = 1
) -> str:
    """Request a reset; return the token in the e-mail."""
    await service.auth.RequestPasswordReset(
        pb.RequestPasswordResetRequest(identifier=user.username)
    )
    return token_of(await service.mailbox.mail(user.email, "new password", number))


def reset(token: str, new: str = NEW) -> pb.ResetPasswordRequest:
    return pb.ResetPasswordRequest(token=token, new_password=new)


def change(new_email: str, password: str = PASSWORD) -> pb.ChangeEmailRequest:
    return pb.ChangeEmailRequest(new_email=new_email, current_password=password)


async def ended(service: RunningService, who: SignedInUser) -> bool:
    call = service.users.GetCurrentUser(ME, metadata=who.metadata)
    return (await expect_rpc_error(call)).reason == "TOKEN_INVALID"


async def me(service: RunningService, who: SignedInUser) -> user_pb2.User:
    return (await service.users.GetCurrentUser(ME, metadata=who.metadata)).user


async def test_password_reset_by_mail(shared: RunningService) -> None:
    """The token is valid once, ends every session, and the owner gets a notice."""
    ana = await shared.signed_in()
    token = await reset_token_of(shared, ana.user)
    await shared.auth.ResetPassword(reset(token))
    assert await ended(shared, ana)
    assert await shared.auth.Login(login(ana.user.username, NEW))
    error = await expect_rpc_error(shared.auth.ResetPassword(reset(token)))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == "MAILED_TOKEN_INVALID"
    await shared.mailbox.mail(ana.user.email, "password was changed")


async def test_password_reset_leaves_the_second_factor(
    shared: RunningService,
) -> None:
    """Whoever reads the e-mails has one factor (ASVS 6.4.3)."""
    ana = await enrolled(shared)
    await shared.auth.ResetPassword(reset(await reset_token_of(shared, ana.user)))
    assert await challenge_of(shared, ana, NEW)


async def test_weak_password_leaves_reset_token_unused(shared: RunningService) -> None:
    """A refused password can be corrected with the same token."""
    ana = await shared.sign_up()
    token = await reset_token_of(shared, ana)
    error = await expect_rpc_error(
        shared.auth.ResetPassword(reset(token, "greenhorse"))
    )
    assert ("newPassword", "password.upper") in error.violations
    await shared.auth.ResetPassword(reset(token))


async def test_reset_token_is_used_once_under_concurrency(
    shared: RunningService,
) -> None:
    """One of five calls succeeds; only its password is set."""
    ana = await shared.sign_up()
    token = await reset_token_of(shared, ana)
    calls = [shared.auth.ResetPassword(reset(token, f"{NEW}{n}")) for n in range(5)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    won = [n for n, o in enumerate(outcomes) if not isinstance(o, BaseException)]
    assert len(won) == 1
    assert await shared.auth.Login(login(ana.username, f"{NEW}{won[0]}"))


async def test_reset_token_ends_with_password_change(shared: RunningService) -> None:
    """An e-mail that others may read must not outlive the password that it replaces."""
    ana = await shared.signed_in()
    token = await reset_token_of(shared, ana.user)
    await shared.auth.ChangePassword(
        pb.ChangePasswordRequest(current_password=PASSWORD, new_password=NEW),
        metadata=ana.metadata,
    )
    await shared.mailbox.mail(ana.user.email, "password was changed")
    error = await expect_rpc_error(shared.auth.ResetPassword(reset(token)))
    assert error.reason == "MAILED_TOKEN_INVALID"


async def test_reset_token_ends_with_account(shared: RunningService) -> None:
    """Restoring a deleted account does not restore its tokens."""
    ana, root = await shared.signed_in(), await shared.signed_in(Role.ADMIN)
    token = await reset_token_of(shared, ana.user)
    gone = user_pb2.DeleteUserRequest(id=ana.user.id)
    await shared.users.DeleteUser(gone, metadata=ana.metadata)
    assert (await expect_rpc_error(shared.auth.ResetPassword(reset(token)))).reason
    back = user_pb2.UndeleteUserRequest(id=ana.user.id)
    await shared.users.UndeleteUser(back, metadata=root.metadata)
    error = await expect_rpc_error(shared.auth.ResetPassword(reset(token)))
    assert error.reason == "MAILED_TOKEN_INVALID"


async def test_password_reset_reveals_no_account(shared: RunningService) -> None:
    """R3: one answer for all; only an account gets an e-mail."""
    ana = await shared.sign_up()
    for identifier in ("unknown", "unknown@example.com", ana.email):
        request = pb.RequestPasswordResetRequest(identifier=identifier)
        answer = await shared.auth.RequestPasswordReset(request)
        assert answer == pb.RequestPasswordResetResponse()
    await shared.mailbox.mail(ana.email, "new password")
    assert not shared.mailbox.to("unknown@example.com")


async def test_password_reset_mails_are_limited_per_day(shared: RunningService) -> None:
    """Beyond them the answer is the same, and no e-mail comes."""
    ana = await shared.signed_in()
    for number in range(1, 11):
        await reset_token_of(shared, ana.user, number)
    request = pb.RequestPasswordResetRequest(identifier=ana.user.email)
    await shared.auth.RequestPasswordReset(request)
    # e-mails are sent in order: the reset before this one would have arrived
    await shared.auth.RequestEmailVerification(
        pb.RequestEmailVerificationRequest(), metadata=ana.metadata
    )
    await shared.mailbox.mail(ana.user.email, "Confirm your e-mail")
    assert shared.mailbox.subjects(ana.user.email).count("Choose a new password") == 10


async def test_verification_link_opened_again_succeeds(shared: RunningService) -> None:
    """The link of the first e-mail verifies the address, and opening it again is OK.

    It is refused as soon as the address is no longer the account's verified one.
    """
    ana, root = await shared.signed_in(), await shared.signed_in(Role.ADMIN)
    assert not (await me(shared, ana)).email_verified
    welcome = await shared.mailbox.mail(ana.user.email, "Welcome")
    verify = pb.VerifyEmailRequest(token=token_of(welcome))
    answers = await asyncio.gather(*(shared.auth.VerifyEmail(verify) for _ in range(5)))
    assert answers == [pb.VerifyEmailResponse()] * 5
    verified = await me(shared, ana)
    assert verified.email_verified
    await shared.auth.VerifyEmail(verify)
    assert await me(shared, ana) == verified  # nothing changed, not even the etag
    for email in (f"other_{ana.user.email}", ana.user.email):
        edit = user_pb2.User(id=ana.user.id, email=email)
        request = user_pb2.UpdateUserRequest(user=edit)
        await shared.users.UpdateUser(request, metadata=root.metadata)
        error = await expect_rpc_error(shared.auth.VerifyEmail(verify))
        assert error.reason == "MAILED_TOKEN_INVALID"
    assert not (await me(shared, ana)).email_verified


async def test_invalidated_verification_link_is_refused(shared: RunningService) -> None:
    """A token that was never used verifies nothing once a change invalidated it."""
    ana = await shared.signed_in()
    unused = token_of(await shared.mailbox.mail(ana.user.email, "Welcome"))
    await shared.auth.RequestEmailVerification(
        pb.RequestEmailVerificationRequest(), metadata=ana.metadata
    )
    used = token_of(await shared.mailbox.mail(ana.user.email, "Confirm your"))
    await shared.auth.VerifyEmail(pb.VerifyEmailRequest(token=used))
    await shared.auth.ChangePassword(
        pb.ChangePasswordRequest(current_password=PASSWORD, new_password=NEW),
        metadata=ana.metadata,
    )
    await shared.auth.VerifyEmail(pb.VerifyEmailRequest(token=used))
    verify = pb.VerifyEmailRequest(token=unused)
    refused = await expect_rpc_error(shared.auth.VerifyEmail(verify))
    assert refused.reason == "MAILED_TOKEN_INVALID"


async def test_new_address_link_opened_again_succeeds(shared: RunningService) -> None:
    """The link of a new address too; a token for a password never verifies one."""
    ana = await shared.signed_in()
    new = f"again_{ana.user.email}"
    await shared.auth.ChangeEmail(change(new), metadata=ana.metadata)
    token = token_of(await shared.mailbox.mail(new, "Confirm your new"))
    for _ in range(2):
        await shared.auth.VerifyEmail(pb.VerifyEmailRequest(token=token))
    reset_token = await reset_token_of(
        shared, user_pb2.User(username=ana.user.username, email=new)
    )
    for _ in range(2):
        verify = pb.VerifyEmailRequest(token=reset_token)
        error = await expect_rpc_error(shared.auth.VerifyEmail(verify))
        assert error.reason == "MAILED_TOKEN_INVALID"
        await shared.auth.VerifyEmail(pb.VerifyEmailRequest(token=token))
    await shared.auth.ResetPassword(reset(reset_token))
    error = await expect_rpc_error(shared.auth.ResetPassword(reset(reset_token)))
    assert error.reason == "MAILED_TOKEN_INVALID"


async def test_links_use_public_url(shared: RunningService) -> None:
    """R26: neither Host nor X-Forwarded-Host appears in an e-mail."""
    evil = {"host": "evil.example", "x-forwarded-host": "evil.example"}
    body = {"email": "h@example.com", "username": "host_test", "password": PASSWORD}
    await shared.http.post("/api/v1/users", json=body, headers=evil)
    mail = await shared.mailbox.mail("h@example.com", "Welcome")
    assert link_of(mail).startswith("http://127.0.0.1:8080/verify-email#token=")
    assert "evil" not in mail.as_string()


async def test_change_email(shared: RunningService) -> None:
    """A new address is used once it is verified; the old one gets a notice.

    R13: the other sessions end.
    """
    ana = await shared.signed_in()
    other = SignedInUser(ana.user, await shared.log_in(ana.user.username))
    reset_token = await reset_token_of(shared, ana.user)
    new = f"new_{ana.user.email}"
    await shared.auth.ChangeEmail(change(new.upper()), metadata=ana.metadata)
    assert await ended(shared, other)
    await shared.mailbox.mail(ana.user.email, "A change of your")
    assert (await me(shared, ana)).email == ana.user.email
    token = token_of(await shared.mailbox.mail(new, "Confirm your new"))
    await shared.auth.VerifyEmail(pb.VerifyEmailRequest(token=token))
    changed = await me(shared, ana)
    assert (changed.email, changed.email_verified) == (new, True)
    await shared.mailbox.mail(ana.user.email, "was changed")
    error = await expect_rpc_error(shared.auth.ResetPassword(reset(reset_token)))
    assert error.reason == "MAILED_TOKEN_INVALID"


async def test_change_email_to_taken_address(shared: RunningService) -> None:
    """R3: the caller sees no difference; the owner of the address gets a notice."""
    ana, bea = await shared.signed_in(), await shared.sign_up()
    answer = await shared.auth.ChangeEmail(change(bea.email), metadata=ana.metadata)
    assert answer == pb.ChangeEmailResponse()
    await shared.mailbox.mail(bea.email, "tried to use your")
    assert (await me(shared, ana)).email == ana.user.email


async def test_change_email_to_address_taken_meanwhile(shared: RunningService) -> None:
    """The unique constraint decides, and the caller learns of it."""
    ana = await shared.signed_in()
    new = f"late_{ana.user.email}"
    await shared.auth.ChangeEmail(change(new), metadata=ana.metadata)
    token = token_of(await shared.mailbox.mail(new, "Confirm your new"))
    await shared.sign_up(new.partition("@")[0])
    error = await expect_rpc_error(
        shared.auth.VerifyEmail(pb.VerifyEmailRequest(token=token))
    )
    assert error.reason == "EMAIL_TAKEN"


async def test_change_email_needs_the_password(shared: RunningService) -> None:
    """A session alone is not enough."""
    ana = await shared.signed_in()
    call = shared.auth.ChangeEmail
    error = await expect_rpc_error(
        call(change("x@example.com", NEW), metadata=ana.metadata)
    )
    assert error.reason == "INVALID_CREDENTIALS"
    assert not shared.mailbox.to("x@example.com")


async def test_password_reset_cancels_change_email(shared: RunningService) -> None:
    """A thief's pending change of address ends with a password reset."""
    ana = await shared.signed_in()
    await shared.auth.ChangeEmail(
        change(f"thief_{ana.user.email}"), metadata=ana.metadata
    )
    request_mail = await shared.mailbox.mail(
        f"thief_{ana.user.email}", "Confirm your new"
    )
    await shared.auth.ResetPassword(reset(await reset_token_of(shared, ana.user)))
    verify = pb.VerifyEmailRequest(token=token_of(request_mail))
    error = await expect_rpc_error(shared.auth.VerifyEmail(verify))
    assert error.reason == "MAILED_TOKEN_INVALID"


async def test_log_in_from_new_device_is_mailed(shared: RunningService) -> None:
    """Not for the first log-in, and once for each device and address."""
    ana = await shared.sign_up()
    body = {"identifier": ana.username, "password": PASSWORD}
    for agent in ("Phone", "Phone", "Tablet", "Phone", "Tablet"):
        headers = {"user-agent": agent}
        await shared.http.post("/api/v1/auth/login", json=body, headers=headers)
    await shared.log_in(ana.username)
    mail = await shared.mailbox.mail(ana.email, "new device", 2)
    mails = [m for m in shared.mailbox.to(ana.email) if "device" in m["Subject"]]
    assert len(mails) == 2
    assert "device:     Tablet" in mails[0].get_content()
    assert "127.0.0.1" in mail.get_content()


async def test_many_failed_log_ins_are_mailed(shared: RunningService) -> None:
    """R6: the owner gets a notice, and can log in from another address."""
    ana = await shared.sign_up()
    wrong = login(ana.username, "Wrong7horse")
    outcomes = await asyncio.gather(
        *(shared.auth.Login(wrong) for _ in range(10)), return_exceptions=True
    )
    assert all(isinstance(o, grpc.aio.AioRpcError) for o in outcomes)
    await shared.mailbox.mail(ana.email, "Many failed log-ins")
    body = {"identifier": ana.username, "password": PASSWORD}
    elsewhere = await shared.http.post("/api/v1/auth/login", json=body)
    assert elsewhere.status_code == 200


async def test_admin_edit_of_email_is_mailed(shared: RunningService) -> None:
    """The old address gets a notice."""
    ana, root = await shared.signed_in(), await shared.signed_in(Role.ADMIN)
    request = user_pb2.UpdateUserRequest(
        user=user_pb2.User(id=ana.user.id, email=f"moved_{ana.user.email}")
    )
    await shared.users.UpdateUser(request, metadata=root.metadata)
    await shared.mailbox.mail(ana.user.email, "address was changed")


@pytest.mark.parametrize("header", ["From", "To", "Subject", "Date", "Message-ID"])
async def test_mail_has_expected_headers(shared: RunningService, header: str) -> None:
    """One recipient, one plain part in ASCII, one of each header."""
    ana = await shared.sign_up()
    mail: EmailMessage = await shared.mailbox.mail(ana.email, "Welcome")
    assert len(mail.get_all(header, [])) == 1
    assert mail.get_content_type() == "text/plain"
    assert mail["Auto-Submitted"] == "auto-generated"
    assert ana.username in mail.get_content()


async def test_recovery_over_rest_has_empty_responses(shared: RunningService) -> None:
    """204 without a body, for known and unknown accounts."""
    ana = await shared.signed_in()
    calls = {
        "request-password-reset": {"identifier": "unknown"},
        "request-email-verification": {},
        "change-email": {"newEmail": "y@example.com", "currentPassword": PASSWORD},
    }
    for path, body in calls.items():
        answer = await shared.http.post(
            f"/api/v1/auth/{path}", json=body, headers=ana.headers
        )
        assert (answer.status_code, answer.content) == (204, b"")
    welcome = await shared.mailbox.mail(ana.user.email, "Welcome")
    token = {"token": token_of(welcome)}
    for _ in range(2):
        answer = await shared.http.post("/api/v1/auth/verify-email", json=token)
        assert (answer.status_code, answer.content) == (204, b"")
