"""What goes by mail: resets, proofs of an address, and what owners are told."""

import asyncio
from email.message import EmailMessage

import grpc
import pytest

from blatam.auth.v1 import auth_pb2 as pb
from blatam.user.v1 import user_pb2
from server.domain.accounts.users import Role
from tests.mailbox import link_of, token_of
from tests.running import PASSWORD, Running, SignedIn
from tests.status import refusal

NEW = "Green8horse"
ME = user_pb2.GetCurrentUserRequest()


def login(identifier: str, password: str = PASSWORD) -> pb.LoginRequest:
    return pb.LoginRequest(identifier=identifier, password=password)


async def asked_reset(service: Running, user: user_pb2.User, number: int = 1) -> str:
    """Ask for a reset; give the token that is mailed."""
    await service.auth.RequestPasswordReset(
        pb.RequestPasswordResetRequest(identifier=user.username)
    )
    return token_of(await service.mailbox.mail(user.email, "new password", number))


def reset(token: str, new: str = NEW) -> pb.ResetPasswordRequest:
    return pb.ResetPasswordRequest(token=token, new_password=new)


def change(new_email: str, password: str = PASSWORD) -> pb.ChangeEmailRequest:
    return pb.ChangeEmailRequest(new_email=new_email, current_password=password)


async def ended(service: Running, who: SignedIn) -> bool:
    call = service.users.GetCurrentUser(ME, metadata=who.metadata)
    return (await refusal(call)).reason == "TOKEN_INVALID"


async def me(service: Running, who: SignedIn) -> user_pb2.User:
    return (await service.users.GetCurrentUser(ME, metadata=who.metadata)).user


async def test_a_new_password_by_mail(shared: Running) -> None:
    """The token serves once, ends every session, and its owner is told."""
    ana = await shared.signed_in()
    token = await asked_reset(shared, ana.user)
    await shared.auth.ResetPassword(reset(token))
    assert await ended(shared, ana)
    assert await shared.auth.Login(login(ana.user.username, NEW))
    refused = await refusal(shared.auth.ResetPassword(reset(token)))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.reason == "MAILED_TOKEN_INVALID"
    await shared.mailbox.mail(ana.user.email, "password was changed")


async def test_a_weak_password_does_not_use_the_token(shared: Running) -> None:
    ana = await shared.sign_up()
    token = await asked_reset(shared, ana)
    refused = await refusal(shared.auth.ResetPassword(reset(token, "greenhorse")))
    assert ("newPassword", "password.upper") in refused.violations
    await shared.auth.ResetPassword(reset(token))


async def test_two_with_one_token(shared: Running) -> None:
    """One of them wins, whoever it is; the other's password is not taken."""
    ana = await shared.sign_up()
    token = await asked_reset(shared, ana)
    calls = [shared.auth.ResetPassword(reset(token, f"{NEW}{n}")) for n in range(5)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    won = [n for n, o in enumerate(outcomes) if not isinstance(o, BaseException)]
    assert len(won) == 1
    assert await shared.auth.Login(login(ana.username, f"{NEW}{won[0]}"))


async def test_a_token_dies_with_the_password(shared: Running) -> None:
    """A mail that somebody else may read must not outlive what it replaces."""
    ana = await shared.signed_in()
    token = await asked_reset(shared, ana.user)
    await shared.auth.ChangePassword(
        pb.ChangePasswordRequest(current_password=PASSWORD, new_password=NEW),
        metadata=ana.metadata,
    )
    await shared.mailbox.mail(ana.user.email, "password was changed")
    refused = await refusal(shared.auth.ResetPassword(reset(token)))
    assert refused.reason == "MAILED_TOKEN_INVALID"


async def test_a_token_dies_with_the_account(shared: Running) -> None:
    ana, root = await shared.signed_in(), await shared.signed_in(Role.ADMIN)
    token = await asked_reset(shared, ana.user)
    gone = user_pb2.DeleteUserRequest(id=ana.user.id)
    await shared.users.DeleteUser(gone, metadata=ana.metadata)
    assert (await refusal(shared.auth.ResetPassword(reset(token)))).reason
    back = user_pb2.UndeleteUserRequest(id=ana.user.id)
    await shared.users.UndeleteUser(back, metadata=root.metadata)
    refused = await refusal(shared.auth.ResetPassword(reset(token)))
    assert refused.reason == "MAILED_TOKEN_INVALID"


async def test_nobody_learns_who_has_an_account(shared: Running) -> None:
    """R3: one answer for all; only who has an account gets mail."""
    ana = await shared.sign_up()
    for identifier in ("nobody", "nobody@example.com", ana.email):
        request = pb.RequestPasswordResetRequest(identifier=identifier)
        answer = await shared.auth.RequestPasswordReset(request)
        assert answer == pb.RequestPasswordResetResponse()
    await shared.mailbox.mail(ana.email, "new password")
    assert not shared.mailbox.to("nobody@example.com")


async def test_ten_resets_a_day(shared: Running) -> None:
    """Beyond them the answer is the same, and no mail comes."""
    ana = await shared.signed_in()
    for number in range(1, 11):
        await asked_reset(shared, ana.user, number)
    request = pb.RequestPasswordResetRequest(identifier=ana.user.email)
    await shared.auth.RequestPasswordReset(request)
    # what comes after it has overtaken nothing
    await shared.auth.RequestEmailVerification(
        pb.RequestEmailVerificationRequest(), metadata=ana.metadata
    )
    await shared.mailbox.mail(ana.user.email, "Confirm your e-mail")
    assert shared.mailbox.subjects(ana.user.email).count("Choose a new password") == 10


async def test_verification_link_opened_again_succeeds(shared: Running) -> None:
    """The link of the first mail verifies the address, and opening it again is OK.

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
        refused = await refusal(shared.auth.VerifyEmail(verify))
        assert refused.reason == "MAILED_TOKEN_INVALID"
    assert not (await me(shared, ana)).email_verified


async def test_new_address_link_opened_again_succeeds(shared: Running) -> None:
    """The link of a new address too; a token for a password never verifies one."""
    ana = await shared.signed_in()
    new = f"again_{ana.user.email}"
    await shared.auth.ChangeEmail(change(new), metadata=ana.metadata)
    token = token_of(await shared.mailbox.mail(new, "Confirm your new"))
    for _ in range(2):
        await shared.auth.VerifyEmail(pb.VerifyEmailRequest(token=token))
    reset_token = await asked_reset(
        shared, user_pb2.User(username=ana.user.username, email=new)
    )
    for _ in range(2):
        verify = pb.VerifyEmailRequest(token=reset_token)
        refused = await refusal(shared.auth.VerifyEmail(verify))
        assert refused.reason == "MAILED_TOKEN_INVALID"
        await shared.auth.VerifyEmail(pb.VerifyEmailRequest(token=token))
    await shared.auth.ResetPassword(reset(reset_token))
    refused = await refusal(shared.auth.ResetPassword(reset(reset_token)))
    assert refused.reason == "MAILED_TOKEN_INVALID"


async def test_links_lead_where_the_operator_says(shared: Running) -> None:
    """R26: neither Host nor X-Forwarded-Host gets into a mail."""
    evil = {"host": "evil.example", "x-forwarded-host": "evil.example"}
    body = {"email": "h@example.com", "username": "host_test", "password": PASSWORD}
    await shared.http.post("/api/v1/users", json=body, headers=evil)
    mail = await shared.mailbox.mail("h@example.com", "Welcome")
    assert link_of(mail).startswith("http://127.0.0.1:8080/verify-email#token=")
    assert "evil" not in mail.as_string()


async def test_a_new_address(shared: Running) -> None:
    """It is the account's once its reader has proven it; the old one is told.

    R13: the other sessions end.
    """
    ana = await shared.signed_in()
    other = SignedIn(ana.user, await shared.log_in(ana.user.username))
    reset_token = await asked_reset(shared, ana.user)
    new = f"new_{ana.user.email}"
    await shared.auth.ChangeEmail(change(new.upper()), metadata=ana.metadata)
    assert await ended(shared, other)
    await shared.mailbox.mail(ana.user.email, "about to change")
    assert (await me(shared, ana)).email == ana.user.email
    token = token_of(await shared.mailbox.mail(new, "Confirm your new"))
    await shared.auth.VerifyEmail(pb.VerifyEmailRequest(token=token))
    changed = await me(shared, ana)
    assert (changed.email, changed.email_verified) == (new, True)
    await shared.mailbox.mail(ana.user.email, "was changed")
    refused = await refusal(shared.auth.ResetPassword(reset(reset_token)))
    assert refused.reason == "MAILED_TOKEN_INVALID"


async def test_an_address_that_is_taken(shared: Running) -> None:
    """R3: the caller sees no difference; who has the address is told."""
    ana, bea = await shared.signed_in(), await shared.sign_up()
    answer = await shared.auth.ChangeEmail(change(bea.email), metadata=ana.metadata)
    assert answer == pb.ChangeEmailResponse()
    await shared.mailbox.mail(bea.email, "was asked for")
    assert (await me(shared, ana)).email == ana.user.email


async def test_an_address_that_is_taken_meanwhile(shared: Running) -> None:
    """The constraint decides; the token's bearer has proven to read the address."""
    ana = await shared.signed_in()
    new = f"late_{ana.user.email}"
    await shared.auth.ChangeEmail(change(new), metadata=ana.metadata)
    token = token_of(await shared.mailbox.mail(new, "Confirm your new"))
    await shared.sign_up(new.partition("@")[0])
    refused = await refusal(shared.auth.VerifyEmail(pb.VerifyEmailRequest(token=token)))
    assert refused.reason == "EMAIL_TAKEN"


async def test_a_new_address_needs_the_password(shared: Running) -> None:
    ana = await shared.signed_in()
    call = shared.auth.ChangeEmail
    refused = await refusal(call(change("x@example.com", NEW), metadata=ana.metadata))
    assert refused.reason == "INVALID_CREDENTIALS"
    assert not shared.mailbox.to("x@example.com")


async def test_a_stolen_session_moves_no_account(shared: Running) -> None:
    """What was asked for before a new password was chosen comes to nothing."""
    ana = await shared.signed_in()
    await shared.auth.ChangeEmail(
        change(f"thief_{ana.user.email}"), metadata=ana.metadata
    )
    asked = await shared.mailbox.mail(f"thief_{ana.user.email}", "Confirm your new")
    await shared.auth.ResetPassword(reset(await asked_reset(shared, ana.user)))
    verify = pb.VerifyEmailRequest(token=token_of(asked))
    refused = await refusal(shared.auth.VerifyEmail(verify))
    assert refused.reason == "MAILED_TOKEN_INVALID"


async def test_a_log_in_from_elsewhere_is_told(shared: Running) -> None:
    """Not the first one, and none from where there was one before."""
    ana = await shared.sign_up()
    body = {"identifier": ana.username, "password": PASSWORD}
    for agent in ("Phone", "Phone", "Tablet", "Phone", "Tablet"):
        headers = {"user-agent": agent}
        await shared.http.post("/api/v1/auth/login", json=body, headers=headers)
    await shared.log_in(ana.username)
    mail = await shared.mailbox.mail(ana.email, "new device", 2)
    told = [m for m in shared.mailbox.to(ana.email) if "device" in m["Subject"]]
    assert len(told) == 2
    assert "device:  Tablet" in told[0].get_content()
    assert "127.0.0.1" in mail.get_content()


async def test_many_failures_are_told(shared: Running) -> None:
    """R6: whose account is tried hears of it, and gets in from a clean address."""
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


async def test_an_admin_moves_an_account(shared: Running) -> None:
    """Whoever read the old address is told there."""
    ana, root = await shared.signed_in(), await shared.signed_in(Role.ADMIN)
    request = user_pb2.UpdateUserRequest(
        user=user_pb2.User(id=ana.user.id, email=f"moved_{ana.user.email}")
    )
    await shared.users.UpdateUser(request, metadata=root.metadata)
    await shared.mailbox.mail(ana.user.email, "address was changed")


@pytest.mark.parametrize("header", ["From", "To", "Subject", "Date", "Message-ID"])
async def test_what_a_mail_looks_like(shared: Running, header: str) -> None:
    """One recipient, one plain part in ASCII, one of each header."""
    ana = await shared.sign_up()
    mail: EmailMessage = await shared.mailbox.mail(ana.email, "Welcome")
    assert len(mail.get_all(header, [])) == 1
    assert mail.get_content_type() == "text/plain"
    assert mail["Auto-Submitted"] == "auto-generated"
    assert ana.username in mail.get_content()


async def test_over_rest_there_is_nothing_to_read(shared: Running) -> None:
    """204, for known and unknown alike."""
    ana = await shared.signed_in()
    calls = {
        "request-password-reset": {"identifier": "nobody"},
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
