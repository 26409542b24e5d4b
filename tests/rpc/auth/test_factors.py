"""Authenticator apps and recovery codes, with pyotp as the authenticator app."""

import asyncio

import grpc
import jwt
import pyotp
import pytest
import sqlalchemy as sa

from blatam.auth.v1 import auth_pb2
from blatam.auth.v1 import factor_pb2 as pb
from blatam.user.v1 import user_pb2
from server.domain.accounts.users import Role
from server.store.connections.connect import Database
from tests.authenticator_app import Enrolled, challenge_of, enrol, enrolled
from tests.running import PASSWORD, RunningService, SignedInUser, running
from tests.status import RpcError, expect_rpc_error

NEW_PASSWORD = "Green8horse"


def with_code(challenge: pb.Challenge, code: str) -> pb.CompleteLoginRequest:
    token = challenge.challenge_token
    return pb.CompleteLoginRequest(challenge_token=token, totp_code=code)


def with_recovery_code(challenge: pb.Challenge, code: str) -> pb.CompleteLoginRequest:
    token = challenge.challenge_token
    return pb.CompleteLoginRequest(challenge_token=token, recovery_code=code)


async def refused(
    service: RunningService, request: pb.CompleteLoginRequest
) -> RpcError:
    error = await expect_rpc_error(service.auth.CompleteLogin(request))
    assert error.code is grpc.StatusCode.UNAUTHENTICATED
    assert error.reason == "INVALID_CREDENTIALS"
    return error


def claims(access_token: str) -> dict[str, object]:
    decoded: dict[str, object] = jwt.decode(
        access_token, options={"verify_signature": False}
    )
    return decoded


async def test_log_in_with_an_authenticator_app(shared: RunningService) -> None:
    """From the QR code to a session with two factors."""
    ana = await shared.signed_in()
    created = await shared.auth.CreateTotpFactor(
        pb.CreateTotpFactorRequest(), metadata=ana.metadata
    )
    assert created.qr_code_svg.startswith("<svg")
    app = pyotp.parse_uri(created.otpauth_uri)
    assert isinstance(app, pyotp.TOTP)
    assert (app.secret, app.issuer) == (created.secret, "Blatam Academy")
    assert app.name == ana.user.username
    assert await shared.log_in(ana.user.username)  # no effect before the confirmation
    wrong = pb.ConfirmTotpFactorRequest(id=created.id, totp_code="000000")
    error = await expect_rpc_error(
        shared.auth.ConfirmTotpFactor(wrong, metadata=ana.metadata)
    )
    assert error.reason == "FACTOR_CODE_INVALID"
    code = app.now()
    confirm = pb.ConfirmTotpFactorRequest(id=created.id, totp_code=code)
    confirmed = await shared.auth.ConfirmTotpFactor(confirm, metadata=ana.metadata)
    assert len(set(confirmed.recovery_codes)) == 10
    assert confirmed.factor.name == "Authenticator app"
    mail = await shared.mailbox.mail(ana.user.email, "second factor was added")
    assert "Authenticator app" in str(mail)
    who = Enrolled(ana, app, created.id, [])
    challenge = await challenge_of(shared, who)
    assert list(challenge.factors) == [
        pb.FACTOR_TYPE_TOTP,
        pb.FACTOR_TYPE_RECOVERY_CODE,
    ]
    assert challenge.expires_in == 300
    await refused(shared, with_code(challenge, code))  # replayed
    next_code = who.next_code()
    response = await shared.auth.CompleteLogin(with_code(challenge, next_code))
    issued = claims(response.tokens.access_token)
    assert (issued["acr"], issued["amr"]) == ("aal2", ["pwd", "otp", "mfa"])
    again = await challenge_of(shared, who)
    await refused(shared, with_code(again, next_code))  # the neighbour, twice


async def test_challenge_is_used_once(shared: RunningService) -> None:
    ana = await enrolled(shared)
    challenge = await challenge_of(shared, ana)
    first, second = ana.recovery_codes[:2]
    await shared.auth.CompleteLogin(with_recovery_code(challenge, first))
    await refused(shared, with_recovery_code(challenge, second))
    # the second code was not used
    again = await challenge_of(shared, ana)
    await shared.auth.CompleteLogin(with_recovery_code(again, second))


async def test_recovery_code_works_once(shared: RunningService) -> None:
    """In any spelling; its owner is told how many are left."""
    ana = await enrolled(shared)
    code = ana.recovery_codes[0]
    spelled = code.upper().replace("-", " ")
    challenge = await challenge_of(shared, ana)
    await shared.auth.CompleteLogin(with_recovery_code(challenge, spelled))
    mail = await shared.mailbox.mail(ana.user.email, "recovery code of your account")
    assert "Unused recovery codes: 9" in str(mail)
    challenge = await challenge_of(shared, ana)
    await refused(shared, with_recovery_code(challenge, code))
    listed = await shared.auth.ListFactors(
        pb.ListFactorsRequest(), metadata=ana.metadata
    )
    assert listed.recovery_codes_left == 9


async def test_recovery_code_is_used_once_by_calls_at_the_same_time(
    shared: RunningService,
) -> None:
    ana = await enrolled(shared)
    challenges = [await challenge_of(shared, ana) for _ in range(4)]
    calls = (
        shared.auth.CompleteLogin(with_recovery_code(each, ana.recovery_codes[0]))
        for each in challenges
    )
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(not isinstance(result, Exception) for result in results) == 1


async def test_recovery_code_of_another_user_is_refused(
    shared: RunningService,
) -> None:
    ana, bea = await enrolled(shared), await enrolled(shared)
    challenge = await challenge_of(shared, bea)
    await refused(shared, with_recovery_code(challenge, ana.recovery_codes[0]))


async def test_lost_phone(shared: RunningService) -> None:
    """A recovery code, then another app in place of the lost one."""
    ana = await enrolled(shared)
    challenge = await challenge_of(shared, ana)
    request = with_recovery_code(challenge, ana.recovery_codes[0])
    tokens = (await shared.auth.CompleteLogin(request)).tokens
    back = SignedInUser(ana.user, tokens)
    replaced = await enrol(shared, back)
    assert replaced.recovery_codes == []  # those of the first factor stay
    delete = pb.DeleteFactorRequest(id=ana.factor_id)
    await shared.auth.DeleteFactor(delete, metadata=replaced.metadata)
    await shared.mailbox.mail(ana.user.email, "second factor was removed")
    listed = await shared.auth.ListFactors(
        pb.ListFactorsRequest(), metadata=replaced.metadata
    )
    assert [factor.id for factor in listed.factors] == [replaced.factor_id]


async def test_admin_deletes_the_factor_of_a_lost_phone(
    shared: RunningService,
) -> None:
    """Another user cannot, and does not learn whether there is such a factor."""
    ana, bea = await enrolled(shared), await shared.signed_in()
    root = await shared.signed_in(Role.ADMIN)
    delete = pb.DeleteFactorRequest(id=ana.factor_id)
    error = await expect_rpc_error(
        shared.auth.DeleteFactor(delete, metadata=bea.metadata)
    )
    assert error.reason == "FACTOR_NOT_FOUND"
    await shared.auth.DeleteFactor(delete, metadata=root.metadata)
    await shared.mailbox.mail(ana.user.email, "second factor was removed")
    assert await shared.log_in(ana.user.username)
    events = await shared.auth.ListAuditEvents(
        auth_pb2.ListAuditEventsRequest(user_id=ana.user.id, event="factor.deleted"),
        metadata=root.metadata,
    )
    actors = {(event.actor, event.outcome) for event in events.items}
    assert (f"user:{root.user.id}", "OK") in actors


async def test_confirmation_ends_the_other_sessions(shared: RunningService) -> None:
    """They were opened without the second factor."""
    ana = await shared.signed_in()
    other = SignedInUser(ana.user, await shared.log_in(ana.user.username))
    who = await enrol(shared, ana)
    me = user_pb2.GetCurrentUserRequest()
    error = await expect_rpc_error(
        shared.users.GetCurrentUser(me, metadata=other.metadata)
    )
    assert error.reason == "TOKEN_INVALID"
    listed = await shared.auth.ListSessions(
        auth_pb2.ListSessionsRequest(), metadata=who.metadata
    )
    (session,) = listed.sessions
    assert session.current
    assert list(session.amr) == ["pwd", "otp", "mfa"]


async def test_factors_are_changed_with_two_factors_only(
    shared: RunningService,
) -> None:
    """An access token from before the confirmation proves the password only."""
    ana = await shared.signed_in()
    who = await enrol(shared, ana)
    delete = pb.DeleteFactorRequest(id=who.factor_id)
    for call in (
        shared.auth.DeleteFactor(delete, metadata=ana.metadata),
        shared.auth.CreateTotpFactor(
            pb.CreateTotpFactorRequest(), metadata=ana.metadata
        ),
        shared.auth.RegenerateRecoveryCodes(
            pb.RegenerateRecoveryCodesRequest(), metadata=ana.metadata
        ),
    ):
        error = await expect_rpc_error(call)
        assert error.reason == "STEP_UP_REQUIRED"
    await shared.auth.DeleteFactor(delete, metadata=who.metadata)


async def test_challenge_of_another_client_is_refused(shared: RunningService) -> None:
    """Another network, which REST calls come from here; the same error as for others.

    The code was right, and is not used up.
    """
    ana = await enrolled(shared)
    challenge = await challenge_of(shared, ana)
    body = {
        "challengeToken": challenge.challenge_token,
        "recoveryCode": ana.recovery_codes[0],
    }
    answer = await shared.http.post("/api/v1/auth/login:complete", json=body)
    assert answer.status_code == 401
    assert answer.json()["errorCode"] == "INVALID_CREDENTIALS"
    request = with_recovery_code(challenge, ana.recovery_codes[0])
    await shared.auth.CompleteLogin(request)


async def test_challenge_is_void_after_a_change_of_the_password(
    shared: RunningService,
) -> None:
    ana = await enrolled(shared)
    challenge = await challenge_of(shared, ana)
    change = auth_pb2.ChangePasswordRequest(
        current_password=PASSWORD, new_password=NEW_PASSWORD
    )
    await shared.auth.ChangePassword(change, metadata=ana.metadata)
    await refused(shared, with_recovery_code(challenge, ana.recovery_codes[0]))
    await challenge_of(shared, ana, NEW_PASSWORD)


async def test_challenge_allows_five_attempts(shared: RunningService) -> None:
    """The right code of the sixth is refused; another challenge takes it."""
    ana = await enrolled(shared)
    challenge = await challenge_of(shared, ana)
    for _ in range(5):
        await refused(shared, with_recovery_code(challenge, "00000-00000"))
    right = ana.recovery_codes[0]
    await refused(shared, with_recovery_code(challenge, right))
    challenge = await challenge_of(shared, ana)
    await shared.auth.CompleteLogin(with_recovery_code(challenge, right))


async def test_refusals_have_one_answer(shared: RunningService) -> None:
    """R1: they never say which part was wrong."""
    ana = await enrolled(shared)
    challenge = await challenge_of(shared, ana)
    unknown = pb.Challenge(challenge_token="A" * 64)
    answers = set()
    for request in (
        with_code(challenge, "000000"),
        with_recovery_code(challenge, "wrong"),
        with_code(unknown, "000000"),
        with_recovery_code(unknown, ana.recovery_codes[0]),
    ):
        error = await refused(shared, request)
        error.status.details.pop()  # RequestInfo
        answers.add(error.status.SerializeToString())
    assert len(answers) == 1


async def test_second_steps_of_one_address_are_limited(
    limited: RunningService,
) -> None:
    """Twenty a minute, whatever the challenge; five for each challenge."""
    await limited.sign_up()  # the connection to Redis is open
    for number in range(20):
        token = f"{number:064}"
        await refused(limited, with_code(pb.Challenge(challenge_token=token), "0" * 6))
    last = pb.Challenge(challenge_token="x" * 64)
    error = await expect_rpc_error(limited.auth.CompleteLogin(with_code(last, "0" * 6)))
    assert error.reason == "RATE_LIMITED"


async def test_wrong_password_does_not_tell_about_factors(
    shared: RunningService,
) -> None:
    """R1: before the password is right, an account with a factor answers the same."""
    ana, bea = await enrolled(shared), await shared.signed_in()
    answers = set()
    for name in (ana.user.username, bea.user.username, "unknown"):
        wrong = auth_pb2.LoginRequest(identifier=name, password="Wrong7horse")
        error = await expect_rpc_error(shared.auth.Login(wrong))
        error.status.details.pop()  # RequestInfo
        answers.add(error.status.SerializeToString())
    assert len(answers) == 1


async def test_half_a_log_in_is_audited_as_such(shared: RunningService) -> None:
    ana, root = await enrolled(shared), await shared.signed_in(Role.ADMIN)
    challenge = await challenge_of(shared, ana)
    request = with_recovery_code(challenge, ana.recovery_codes[0])
    await shared.auth.CompleteLogin(request)
    listing = auth_pb2.ListAuditEventsRequest(
        user_id=ana.user.id, event="session.opened"
    )
    async with asyncio.timeout(5):
        while True:  # what changed nothing is written in the background
            listed = await shared.auth.ListAuditEvents(listing, metadata=root.metadata)
            if len(listed.items) == 3:
                break
            await asyncio.sleep(0.01)
    assert sorted(event.outcome for event in listed.items) == [
        "FACTOR_REQUIRED",
        "OK",
        "OK",
    ]


async def test_regenerated_codes_replace_the_previous_ones(
    shared: RunningService,
) -> None:
    ana = await enrolled(shared)
    request = pb.RegenerateRecoveryCodesRequest()
    response = await shared.auth.RegenerateRecoveryCodes(request, metadata=ana.metadata)
    assert len(set(response.recovery_codes)) == 10
    challenge = await challenge_of(shared, ana)
    await refused(shared, with_recovery_code(challenge, ana.recovery_codes[0]))
    new = response.recovery_codes[0]
    await shared.auth.CompleteLogin(with_recovery_code(challenge, new))
    await shared.mailbox.mail(ana.user.email, "recovery codes were replaced")


async def test_recovery_codes_need_a_factor(shared: RunningService) -> None:
    ana = await shared.signed_in()
    request = pb.RegenerateRecoveryCodesRequest()
    error = await expect_rpc_error(
        shared.auth.RegenerateRecoveryCodes(request, metadata=ana.metadata)
    )
    assert error.reason == "FACTOR_REQUIRED"


async def test_browser_logs_in_with_a_second_factor(shared: RunningService) -> None:
    """Over REST: the challenge has no cookie, and the tokens' cookie comes after it."""
    ana = await enrolled(shared)
    headers = {"X-Token-Mode": "cookie", "Sec-Fetch-Site": "same-origin"}
    password = {"identifier": ana.user.username, "password": PASSWORD}
    answer = await shared.http.post(
        "/api/v1/auth/login", json=password, headers=headers
    )
    assert answer.status_code == 200
    assert "set-cookie" not in answer.headers
    challenge = answer.json()["challenge"]
    assert set(answer.json()) == {"challenge"}
    assert challenge["factors"] == ["FACTOR_TYPE_TOTP", "FACTOR_TYPE_RECOVERY_CODE"]
    body = {
        "challengeToken": challenge["challengeToken"],
        "totpCode": ana.next_code(),
    }
    answer = await shared.http.post(
        "/api/v1/auth/login:complete", json=body, headers=headers
    )
    assert answer.status_code == 200, answer.text
    assert "refresh_token" in answer.headers["set-cookie"]
    assert claims(answer.json()["accessToken"])["acr"] == "aal2"
    assert "refreshToken" not in answer.json()


async def make_old(database_url: str, who: SignedInUser) -> None:
    """Make the log-in of a session an hour old."""
    database = Database(database_url)
    async with database.transaction() as connection:
        await connection.execute(
            sa.text(
                "update sessions set created_at = created_at - interval '1 hour'"
                " where user_id = :id"
            ),
            {"id": who.user.id},
        )
    await database.close()


async def refreshed(service: RunningService, who: SignedInUser) -> SignedInUser:
    request = auth_pb2.RefreshTokenRequest(refresh_token=who.tokens.refresh_token)
    return SignedInUser(who.user, (await service.auth.RefreshToken(request)).tokens)


async def test_refresh_is_no_reauthentication(
    service: RunningService, database_url: str
) -> None:
    """What needs a recent log-in is refused after any refresh, until the password."""
    ana = await service.signed_in()
    await make_old(database_url, ana)
    ana = await refreshed(service, ana)
    create = pb.CreateTotpFactorRequest()
    error = await expect_rpc_error(
        service.auth.CreateTotpFactor(create, metadata=ana.metadata)
    )
    assert error.reason == "STEP_UP_REQUIRED"
    reauthenticate = pb.ReauthenticateRequest(password=PASSWORD)
    response = await service.auth.Reauthenticate(reauthenticate, metadata=ana.metadata)
    bearer = (("authorization", f"Bearer {response.access_token}"),)
    await service.auth.CreateTotpFactor(create, metadata=bearer)
    old, new = claims(ana.tokens.access_token), claims(response.access_token)
    assert (new["sid"], new["acr"]) == (old["sid"], "aal1")
    assert int(str(new["auth_time"])) - int(str(old["auth_time"])) >= 3600
    ana = await refreshed(service, ana)
    assert claims(ana.tokens.access_token)["auth_time"] == new["auth_time"]


async def test_old_log_in_removes_no_factor(
    service: RunningService, database_url: str
) -> None:
    """Two factors an hour ago do not remove one, whatever was refreshed since."""
    ana = await enrolled(service)
    await make_old(database_url, ana.signed_in)
    old = await refreshed(service, ana.signed_in)
    assert claims(old.tokens.access_token)["acr"] == "aal2"
    delete = pb.DeleteFactorRequest(id=ana.factor_id)
    error = await expect_rpc_error(
        service.auth.DeleteFactor(delete, metadata=old.metadata)
    )
    assert error.reason == "STEP_UP_REQUIRED"
    await challenge_of(service, ana)


async def test_reauthentication_with_a_factor(shared: RunningService) -> None:
    """The session has two factors from then on; a wrong or used code is refused."""
    ana = await enrolled(shared)
    wrong = pb.ReauthenticateRequest(totp_code="000000")
    error = await expect_rpc_error(
        shared.auth.Reauthenticate(wrong, metadata=ana.metadata)
    )
    assert error.reason == "INVALID_CREDENTIALS"
    right = pb.ReauthenticateRequest(totp_code=ana.next_code())
    response = await shared.auth.Reauthenticate(right, metadata=ana.metadata)
    assert claims(response.access_token)["acr"] == "aal2"
    error = await expect_rpc_error(
        shared.auth.Reauthenticate(right, metadata=ana.metadata)
    )
    assert error.reason == "INVALID_CREDENTIALS"


async def test_factor_without_enrolment_does_not_reauthenticate(
    shared: RunningService,
) -> None:
    ana = await shared.signed_in()
    for request in (
        pb.ReauthenticateRequest(totp_code="000000"),
        pb.ReauthenticateRequest(recovery_code="00000-00000"),
        pb.ReauthenticateRequest(password="Wrong7horse"),
    ):
        error = await expect_rpc_error(
            shared.auth.Reauthenticate(request, metadata=ana.metadata)
        )
        assert error.reason == "INVALID_CREDENTIALS"


async def test_required_factor_is_enrolled_and_kept(
    database_url: str, redis_url: str
) -> None:
    """MFA_REQUIRED_ROLES: enrol, refresh, work; the last factor cannot be deleted."""
    async with running(database_url, redis_url, mfa_required_roles="admin") as service:
        root = await service.signed_in(Role.ADMIN)
        sessions = auth_pb2.ListSessionsRequest()
        error = await expect_rpc_error(
            service.auth.ListSessions(sessions, metadata=root.metadata)
        )
        assert error.reason == "STEP_UP_REQUIRED"
        who = await enrol(service, root)
        await service.auth.ListSessions(sessions, metadata=who.metadata)
        delete = pb.DeleteFactorRequest(id=who.factor_id)
        error = await expect_rpc_error(
            service.auth.DeleteFactor(delete, metadata=who.metadata)
        )
        assert error.reason == "FACTOR_REQUIRED"


@pytest.mark.parametrize("is_admin", [False, True])
async def test_factors_of_another_user_are_for_admins(
    shared: RunningService, is_admin: bool
) -> None:
    ana = await enrolled(shared)
    other = await shared.signed_in(Role.ADMIN if is_admin else Role.STUDENT)
    listing = shared.auth.ListFactors(
        pb.ListFactorsRequest(user_id=ana.user.id), metadata=other.metadata
    )
    if is_admin:
        (factor,) = (await listing).factors
        assert (factor.id, factor.type) == (ana.factor_id, pb.FACTOR_TYPE_TOTP)
    else:
        assert (await expect_rpc_error(listing)).reason == "ACCESS_DENIED"


async def test_factors_are_exported_without_secrets_and_erased(
    service: RunningService, database_url: str
) -> None:
    """The owner sees names and times; nothing is left after an erasure."""
    ana = await enrolled(service)
    await challenge_of(service, ana)
    answer = await service.http.get(
        f"/api/v1/users/{ana.user.id}:export", headers=dict(ana.metadata)
    )
    document = answer.json()
    (factor,) = document["factors"]
    assert factor["name"] == "phone"
    assert {"secret", "publicKey", "credentialId"}.isdisjoint(factor)
    assert len(document["recoveryCodes"]) == 10
    assert {"codeHash"}.isdisjoint(document["recoveryCodes"][0])
    (challenge,) = document["challenges"]
    assert {"secretHash", "data"}.isdisjoint(challenge)
    erase = user_pb2.EraseUserRequest(id=ana.user.id, current_password=PASSWORD)
    await service.users.EraseUser(erase, metadata=ana.metadata)
    database = Database(database_url)
    async with database.reading() as connection:
        for table in ("factors", "recovery_codes", "challenges"):
            query = sa.text(f"select count(*) from {table}")
            assert (await connection.execute(query)).scalar_one() == 0
    await database.close()
