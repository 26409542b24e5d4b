"""Log-ins with codes that are sent by e-mail."""

import asyncio
from datetime import UTC, datetime, timedelta

import grpc
import jwt
import pytest
import sqlalchemy as sa

from blatam.auth.v1 import auth_pb2, factor_pb2
from blatam.auth.v1 import login_code_pb2 as pb
from blatam.user.v1 import user_pb2
from server.domain.accounts.users import Role, UserEdit
from server.store.connections.connect import Database
from tests.authenticator_app import enrolled
from tests.mailbox import link_of, token_of
from tests.running import PASSWORD, RunningService, SignedInUser, running
from tests.status import expect_rpc_error

SUBJECT = "log-in code"
NEW = "Green8horse"


async def request(service: RunningService, identifier: str) -> str:
    """Request a code; return the nonce."""
    message = pb.RequestLoginCodeRequest(identifier=identifier)
    response = await service.auth.RequestLoginCode(message)
    assert response.expires_in == 600
    return response.nonce


async def mailed(
    service: RunningService, user: user_pb2.User, number: int = 1
) -> tuple[str, str]:
    """Request a code; return the nonce and the code in the e-mail."""
    nonce = await request(service, user.username)
    return nonce, token_of(await service.mailbox.mail(user.email, SUBJECT, number))


async def log_in(
    service: RunningService, nonce: str, code: str, refresh_token: str = ""
) -> auth_pb2.LoginWithCodeResponse:
    return await service.auth.LoginWithCode(
        pb.LoginWithCodeRequest(nonce=nonce, code=code, refresh_token=refresh_token)
    )


async def refused(service: RunningService, nonce: str, code: str) -> str:
    """Expect the refusal of a code; return its message."""
    error = await expect_rpc_error(log_in(service, nonce, code))
    assert error.code is grpc.StatusCode.UNAUTHENTICATED
    assert error.reason == "INVALID_CREDENTIALS"
    return error.message


async def no_code_for(service: RunningService, user: user_pb2.User, codes: int) -> None:
    """Expect that the e-mails before one to a new account have no further code."""
    other = await service.sign_up()
    await mailed(service, other)
    subjects = service.mailbox.subjects(user.email)
    assert subjects.count("Your log-in code") == codes


async def test_log_in_with_a_mailed_code(shared: RunningService) -> None:
    """One factor, once, in any spelling; the older session of the client ends."""
    ana = await shared.signed_in()
    nonce, code = await mailed(shared, ana.user)
    assert len(code) == 8
    mail = await shared.mailbox.mail(ana.user.email, SUBJECT)
    assert mail.get_content().count(code) == 2  # to type, and in the link
    assert link_of(mail).endswith(f"/log-in-code#token={code}")
    spelled = f"{code[:4].lower()}-{code[4:]}"
    response = await log_in(shared, nonce, spelled, ana.tokens.refresh_token)
    assert response.WhichOneof("outcome") == "tokens"
    claims = jwt.decode(
        response.tokens.access_token, options={"verify_signature": False}
    )
    assert (claims["sub"], claims["amr"]) == (str(ana.user.id), ["otp"])
    assert claims["acr"] == "aal1"
    await refused(shared, nonce, code)  # replayed
    error = await expect_rpc_error(
        shared.users.GetCurrentUser(
            user_pb2.GetCurrentUserRequest(), metadata=ana.metadata
        )
    )
    assert error.reason == "TOKEN_INVALID"


async def test_log_in_with_a_mailed_code_over_rest(shared: RunningService) -> None:
    """In browser mode the refresh token is in a cookie; a GET changes nothing."""
    ana = await shared.sign_up()
    asked = await shared.http.post(
        "/api/v1/auth/request-login-code", json={"identifier": ana.email.upper()}
    )
    assert asked.status_code == 200
    code = token_of(await shared.mailbox.mail(ana.email, SUBJECT))
    body = {"nonce": asked.json()["nonce"], "code": code}
    path = "/api/v1/auth/login-with-code"
    assert (await shared.http.get(path, params=body)).status_code == 405
    wrong = await shared.http.post(path, json={**body, "code": "00000000"})
    assert wrong.status_code == 401
    assert wrong.json()["errorCode"] == "INVALID_CREDENTIALS"
    answer = await shared.http.post(
        path,
        json=body,
        headers={"X-Token-Mode": "cookie", "Sec-Fetch-Site": "same-origin"},
    )
    assert answer.status_code == 200
    assert "refreshToken" not in answer.json()
    assert "__Host-refresh_token=" in answer.headers["set-cookie"]
    headers = {"Authorization": f"Bearer {answer.json()['accessToken']}"}
    me = await shared.http.get("/api/v1/users/me", headers=headers)
    assert me.json()["username"] == ana.username
    replayed = await shared.http.post(path, json=body)
    assert replayed.status_code == 401
    assert replayed.json()["error"] == wrong.json()["error"]


async def test_mailed_code_does_not_verify_the_address(shared: RunningService) -> None:
    """The account may have been created by somebody else, who knows its password."""
    ana = await shared.sign_up()
    nonce, code = await mailed(shared, ana)
    tokens = (await log_in(shared, nonce, code)).tokens
    me = await shared.users.GetCurrentUser(
        user_pb2.GetCurrentUserRequest(),
        metadata=SignedInUser(ana, tokens).metadata,
    )
    assert not me.user.email_verified


async def test_mailed_code_allows_five_attempts(shared: RunningService) -> None:
    ana = await shared.sign_up()
    nonce, code = await mailed(shared, ana)
    for _ in range(5):
        await refused(shared, nonce, "00000000")
    await refused(shared, nonce, code)
    nonce, code = await mailed(shared, ana, 2)  # the owner is not locked out
    assert (await log_in(shared, nonce, code)).tokens.access_token


async def test_mailed_code_is_used_once_by_calls_at_the_same_time(
    shared: RunningService,
) -> None:
    nonce, code = await mailed(shared, await shared.sign_up())
    calls = (log_in(shared, nonce, code) for _ in range(4))
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(not isinstance(result, BaseException) for result in results) == 1


async def test_mailed_code_belongs_to_the_browser_that_asked(
    shared: RunningService,
) -> None:
    """A stolen code is of no use with another nonce, of this user or of another."""
    ana, bea = await shared.sign_up(), await shared.sign_up()
    nonce, code = await mailed(shared, ana)
    thief, other_code = await mailed(shared, ana, 2)
    other, _ = await mailed(shared, bea)
    await refused(shared, thief, code)
    await refused(shared, nonce, other_code)
    await refused(shared, other, code)
    await refused(shared, "x" * 64, code)
    assert (await log_in(shared, nonce, code)).tokens.access_token


async def test_nonce_of_a_code_is_no_challenge_of_a_second_factor(
    shared: RunningService,
) -> None:
    ana = await enrolled(shared)
    nonce, _ = await mailed(shared, ana.user)
    complete = factor_pb2.CompleteLoginRequest(
        challenge_token=nonce, totp_code=ana.next_code()
    )
    error = await expect_rpc_error(shared.auth.CompleteLogin(complete))
    assert error.reason == "INVALID_CREDENTIALS"


async def test_mailed_code_needs_the_second_factor_of_the_account(
    shared: RunningService,
) -> None:
    ana = await enrolled(shared)
    nonce, code = await mailed(shared, ana.user)
    response = await log_in(shared, nonce, code)
    assert response.WhichOneof("outcome") == "challenge"
    complete = factor_pb2.CompleteLoginRequest(
        challenge_token=response.challenge.challenge_token, totp_code=ana.next_code()
    )
    completed = await shared.auth.CompleteLogin(complete)
    claims = jwt.decode(
        completed.tokens.access_token, options={"verify_signature": False}
    )
    assert (claims["acr"], claims["amr"]) == ("aal2", ["otp", "mfa"])


@pytest.mark.parametrize(
    "change", ["password", "email", "disabled", "deleted", "erased"]
)
async def test_change_of_the_account_voids_the_code(
    shared: RunningService, change: str
) -> None:
    ana, root = await shared.signed_in(), await shared.signed_in(Role.ADMIN)
    nonce, code = await mailed(shared, ana.user)
    if change == "password":
        await shared.auth.ChangePassword(
            auth_pb2.ChangePasswordRequest(current_password=PASSWORD, new_password=NEW),
            metadata=ana.metadata,
        )
    elif change == "deleted":
        await shared.users.DeleteUser(
            user_pb2.DeleteUserRequest(id=ana.user.id), metadata=ana.metadata
        )
        await shared.users.UndeleteUser(
            user_pb2.UndeleteUserRequest(id=ana.user.id), metadata=root.metadata
        )
    elif change == "erased":
        await shared.users.EraseUser(
            user_pb2.EraseUserRequest(id=ana.user.id), metadata=root.metadata
        )
    else:
        fields: dict[str, object] = {"is_active": False}
        if change == "email":
            fields = {"email": f"new-{ana.user.email}"}
        edit = UserEdit(fields, "", datetime.now(UTC))
        await shared.accounts.edit(ana.user.id, edit)
    await refused(shared, nonce, code)


async def test_request_reveals_no_account(shared: RunningService) -> None:
    """R3: the same answer for all; only an active account gets an e-mail."""
    ana = await shared.sign_up()
    now = datetime.now(UTC)
    await shared.accounts.edit(ana.id, UserEdit({"is_active": False}, "", now))
    messages = set()
    for identifier in ("unknown", "unknown@example.com", ana.email):
        nonce = await request(shared, identifier)
        assert len(nonce) == 64
        messages.add(await refused(shared, nonce, "00000000"))
    assert len(messages) == 1
    await no_code_for(shared, ana, 0)
    assert not shared.mailbox.to("unknown@example.com")


async def test_code_mails_are_limited_per_day(shared: RunningService) -> None:
    """Beyond them the answer is the same, and no e-mail comes."""
    ana = await shared.sign_up()
    for number in range(1, 11):
        await mailed(shared, ana, number)
    await refused(shared, await request(shared, ana.email), "00000000")
    await no_code_for(shared, ana, 10)


async def test_requests_are_limited_by_address_and_identifier(
    database_url: str, redis_url: str
) -> None:
    async with running(database_url, redis_url, rate_limits={}) as service:
        for _ in range(3):
            await request(service, "someone@example.com")
        limited = pb.RequestLoginCodeRequest(identifier="Someone@example.com")
        error = await expect_rpc_error(service.auth.RequestLoginCode(limited))
        assert error.reason == "RATE_LIMITED"
        await request(service, "another@example.com")


async def test_code_expires_and_is_stored_nowhere(
    service: RunningService, database_url: str
) -> None:
    """Neither the code nor the nonce is in a row while they are valid."""
    nonce, code = await mailed(service, await service.sign_up())
    database = Database(database_url)
    async with database.transaction() as connection:
        for table in ("outbox", "challenges", "mailed_tokens"):
            query = sa.text(f"select {table}::text from {table}")
            text = "\n".join((await connection.execute(query)).scalars()).lower()
            assert text
            assert code.lower() not in text
            assert nonce.lower() not in text
        past = {"past": datetime.now(UTC) - timedelta(seconds=1)}
        await connection.execute(
            sa.text("update challenges set expires_at = :past"), past
        )
    await database.close()
    await refused(service, nonce, code)
