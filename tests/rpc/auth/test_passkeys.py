"""Passkeys, with a software authenticator in place of a browser."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Struct

from blatam.auth.v1 import auth_pb2
from blatam.auth.v1 import factor_pb2 as pb
from blatam.user.v1 import user_pb2
from server.domain.accounts.users import Role, UserEdit
from tests.authenticator_app import enrolled
from tests.running import PASSWORD, RunningService, SignedInUser, running
from tests.software_passkey import (
    BACKED_UP,
    CAN_BACK_UP,
    EDDSA,
    ES256,
    RS256,
    USER_PRESENT,
    USER_VERIFIED,
    Json,
    SoftwarePasskey,
    encode,
)
from tests.status import RpcError, expect_rpc_error
from tests.tokens import claims

SITE = "https://academy.example"


def struct(response: Mapping[str, Any]) -> Struct:
    return ParseDict(dict(response), Struct())


async def begin_creation(
    service: RunningService, who: SignedInUser, name: str = ""
) -> tuple[int, Json]:
    """Return the id of a new passkey, and what a browser creates it by."""
    created = await service.auth.CreatePasskey(
        pb.CreatePasskeyRequest(name=name), metadata=who.metadata
    )
    return created.id, MessageToDict(created.options)


async def confirm(
    service: RunningService, who: SignedInUser, passkey_id: int, response: Json
) -> pb.ConfirmPasskeyResponse:
    request = pb.ConfirmPasskeyRequest(id=passkey_id, response=struct(response))
    return await service.auth.ConfirmPasskey(request, metadata=who.metadata)


@dataclass(frozen=True, slots=True)
class Owner:
    """A user with a passkey, whose session has two factors."""

    signed_in: SignedInUser
    passkey: SoftwarePasskey
    factor: pb.Factor
    recovery_codes: list[str]

    @property
    def user(self) -> user_pb2.User:
        return self.signed_in.user

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return self.signed_in.metadata


async def owner(
    service: RunningService,
    passkey: SoftwarePasskey | None = None,
    who: SignedInUser | None = None,
) -> Owner:
    """Return a user who has just added a passkey."""
    passkey, who = passkey or SoftwarePasskey(), who or await service.signed_in()
    passkey_id, options = await begin_creation(service, who)
    confirmed = await confirm(service, who, passkey_id, passkey.create(options))
    refresh = auth_pb2.RefreshTokenRequest(refresh_token=who.tokens.refresh_token)
    tokens = (await service.auth.RefreshToken(refresh)).tokens
    codes = list(confirmed.recovery_codes)
    return Owner(SignedInUser(who.user, tokens), passkey, confirmed.factor, codes)


async def request_options(service: RunningService) -> Json:
    begun = await service.auth.BeginPasskeyLogin(pb.BeginPasskeyLoginRequest())
    return MessageToDict(begun.options)


async def log_in(service: RunningService, response: Json) -> auth_pb2.TokenPair:
    request = pb.CompletePasskeyLoginRequest(response=struct(response))
    return (await service.auth.CompletePasskeyLogin(request)).tokens


async def refused(service: RunningService, response: Json) -> RpcError:
    """Expect the answer of every log-in with a passkey that fails."""
    error = await expect_rpc_error(log_in(service, response))
    assert error.code is grpc.StatusCode.UNAUTHENTICATED
    assert error.reason == "INVALID_CREDENTIALS"
    return error


async def challenge_of(service: RunningService, who: Owner) -> pb.Challenge:
    """Log in with the password, and return the challenge."""
    request = auth_pb2.LoginRequest(identifier=who.user.username, password=PASSWORD)
    return (await service.auth.Login(request)).challenge


def second_step(challenge: pb.Challenge, response: Json) -> pb.CompleteLoginRequest:
    return pb.CompleteLoginRequest(
        challenge_token=challenge.challenge_token, passkey_response=struct(response)
    )


@pytest.mark.parametrize("algorithm", [ES256, EDDSA, RS256])
async def test_log_in_without_a_password(
    shared: RunningService, algorithm: int
) -> None:
    """From its creation to a session with two factors, whose owner is told."""
    ana = await owner(shared, SoftwarePasskey(algorithm))
    assert len(set(ana.recovery_codes)) == 10
    assert (ana.factor.name, ana.factor.type) == ("Passkey", pb.FACTOR_TYPE_PASSKEY)
    await shared.mailbox.mail(ana.user.email, "A passkey was added")
    options = await request_options(shared)
    assert options["rpId"] == "localhost"
    assert not options["allowCredentials"]
    tokens = await log_in(shared, ana.passkey.get(options))
    issued = claims(tokens.access_token)
    assert issued["sub"] == claims(ana.signed_in.tokens.access_token)["sub"]
    assert (issued["acr"], issued["amr"]) == ("aal2", ["hwk", "user", "mfa"])
    listed = await shared.auth.ListFactors(
        pb.ListFactorsRequest(), metadata=ana.metadata
    )
    assert listed.factors[0].HasField("last_used_at")


async def test_browser_logs_in_with_a_passkey(shared: RunningService) -> None:
    """The whole ceremony over REST; the refresh token is in a cookie."""
    ana, passkey = await shared.signed_in(), SoftwarePasskey()
    headers = dict(ana.metadata)
    answer = await shared.http.post(
        "/api/v1/auth/factors/passkey", json={"name": "laptop"}, headers=headers
    )
    assert answer.status_code == 201, answer.text
    created = answer.json()
    assert created["options"]["timeout"] == 300_000
    assert created["options"]["user"]["name"] == ana.user.username
    answer = await shared.http.post(
        f"/api/v1/auth/factors/{created['id']}:confirm-passkey",
        json={"response": passkey.create(created["options"])},
        headers=headers,
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["factor"]["name"] == "laptop"
    answer = await shared.http.post("/api/v1/auth/passkey-login:begin", json={})
    response = passkey.get(answer.json()["options"])
    headers = {"X-Token-Mode": "cookie", "Sec-Fetch-Site": "same-origin"}
    answer = await shared.http.post(
        "/api/v1/auth/passkey-login:complete",
        json={"response": response},
        headers=headers,
    )
    assert answer.status_code == 200, answer.text
    assert "refresh_token" in answer.headers["set-cookie"]
    assert claims(answer.json()["accessToken"])["acr"] == "aal2"
    assert "refreshToken" not in answer.json()
    answer = await shared.http.post(
        "/api/v1/auth/passkey-login:complete", json={"response": response}
    )
    assert (answer.status_code, answer.json()["errorCode"]) == (
        401,
        "INVALID_CREDENTIALS",
    )


async def test_passkey_is_a_second_factor(shared: RunningService) -> None:
    """The challenge of the log-in names the account's passkeys, and is signed."""
    ana, bea = await owner(shared), await owner(shared)
    challenge = await challenge_of(shared, ana)
    assert list(challenge.factors) == [
        pb.FACTOR_TYPE_PASSKEY,
        pb.FACTOR_TYPE_RECOVERY_CODE,
    ]
    options = MessageToDict(challenge.passkey_options)
    (allowed,) = options["allowCredentials"]
    assert allowed["id"] == encode(ana.passkey.credential_id)
    assert allowed["transports"] == ["hybrid", "internal"]
    foreign = bea.passkey.get({**options, "allowCredentials": []})
    error = await expect_rpc_error(
        shared.auth.CompleteLogin(second_step(challenge, foreign))
    )
    assert error.reason == "INVALID_CREDENTIALS"
    response = ana.passkey.get(options)
    completed = await shared.auth.CompleteLogin(second_step(challenge, response))
    assert claims(completed.tokens.access_token)["amr"] == ["pwd", "hwk", "user", "mfa"]
    error = await expect_rpc_error(
        shared.auth.CompleteLogin(second_step(challenge, response))
    )
    assert error.reason == "INVALID_CREDENTIALS"  # replayed


async def test_browser_completes_a_log_in_with_a_passkey(
    shared: RunningService,
) -> None:
    ana = await owner(shared)
    password = {"identifier": ana.user.username, "password": PASSWORD}
    answer = await shared.http.post("/api/v1/auth/login", json=password)
    challenge = answer.json()["challenge"]
    body = {
        "challengeToken": challenge["challengeToken"],
        "passkeyResponse": ana.passkey.get(challenge["passkeyOptions"]),
    }
    answer = await shared.http.post("/api/v1/auth/login:complete", json=body)
    assert answer.status_code == 200, answer.text
    assert claims(answer.json()["accessToken"])["acr"] == "aal2"


async def test_challenge_of_a_log_in_is_signed_by_the_same_challenge(
    shared: RunningService,
) -> None:
    """What was signed for one challenge completes no other, of this user or not."""
    ana = await owner(shared)
    first, second = await challenge_of(shared, ana), await challenge_of(shared, ana)
    response = ana.passkey.get(MessageToDict(first.passkey_options))
    error = await expect_rpc_error(
        shared.auth.CompleteLogin(second_step(second, response))
    )
    assert error.reason == "INVALID_CREDENTIALS"
    await refused(shared, response)  # nor is it one of BeginPasskeyLogin
    other = ana.passkey.get(await request_options(shared))
    error = await expect_rpc_error(
        shared.auth.CompleteLogin(second_step(second, other))
    )
    assert error.reason == "INVALID_CREDENTIALS"


async def test_reauthentication_with_a_passkey(shared: RunningService) -> None:
    """Once, and with a passkey of the caller only."""
    ana, bea = await owner(shared), await owner(shared)
    foreign = bea.passkey.get(await request_options(shared))
    own = ana.passkey.get(await request_options(shared))
    right = pb.ReauthenticateRequest(passkey_response=struct(own))
    wrong = pb.ReauthenticateRequest(passkey_response=struct(foreign))
    response = await shared.auth.Reauthenticate(right, metadata=ana.metadata)
    assert claims(response.access_token)["acr"] == "aal2"
    for request in (wrong, right):
        error = await expect_rpc_error(
            shared.auth.Reauthenticate(request, metadata=ana.metadata)
        )
        assert error.reason == "INVALID_CREDENTIALS"
    answer = await shared.http.post(
        "/api/v1/auth/reauthenticate",
        json={"passkeyResponse": ana.passkey.get(await request_options(shared))},
        headers=dict(ana.metadata),
    )
    assert answer.status_code == 200, answer.text


WRONG: dict[str, dict[str, Any]] = {
    "another relying party": {"rp_id": "evil.example"},
    "another origin": {"origin": "http://evil.example"},
    "another port": {"origin": "http://localhost:81"},
    "a frame": {"is_framed": True},
    "no verification": {"flags": USER_PRESENT},
    "no presence": {"flags": USER_VERIFIED},
    "impossible backup": {"flags": USER_PRESENT | USER_VERIFIED | BACKED_UP},
}


async def test_wrong_creations_are_refused(shared: RunningService) -> None:
    """They have no effect."""
    ana = await shared.signed_in()
    for name, changes in WRONG.items():
        passkey_id, options = await begin_creation(shared, ana)
        response = SoftwarePasskey(**changes).create(options)
        error = await expect_rpc_error(confirm(shared, ana, passkey_id, response))
        assert error.reason == "PASSKEY_INVALID", name
    assert await shared.log_in(ana.user.username)


async def test_wrong_log_ins_are_refused(shared: RunningService) -> None:
    """Of a passkey that is right otherwise."""
    ana = await owner(shared)
    for name, changes in WRONG.items():
        passkey = ana.passkey.changed(**changes)
        passkey.sign_count = 1_000
        error = await refused(shared, passkey.get(await request_options(shared)))
        assert error.reason == "INVALID_CREDENTIALS", name
    await log_in(shared, ana.passkey.get(await request_options(shared)))


async def test_algorithms_that_were_not_offered_are_refused(
    shared: RunningService,
) -> None:
    """No signature, SHA-1 and another padding."""
    ana = await shared.signed_in()
    algorithms: tuple[Any, ...] = (0, -65535, -37, "none")
    for algorithm in algorithms:
        passkey = SoftwarePasskey(algorithm=algorithm)
        passkey_id, options = await begin_creation(shared, ana)
        response = passkey.create(options)
        error = await expect_rpc_error(confirm(shared, ana, passkey_id, response))
        assert error.reason == "PASSKEY_INVALID"


async def test_challenge_of_a_creation_is_used_once_by_its_user(
    shared: RunningService,
) -> None:
    ana, bea = await shared.signed_in(), await shared.signed_in()
    anas_id, anas_options = await begin_creation(shared, ana)
    beas_id, beas_options = await begin_creation(shared, bea)
    passkey = SoftwarePasskey()
    log_in_options = await request_options(shared)
    for options in (beas_options, anas_options | log_in_options):
        response = passkey.create({**anas_options, "challenge": options["challenge"]})
        error = await expect_rpc_error(confirm(shared, ana, anas_id, response))
        assert error.reason == "PASSKEY_INVALID"
    response = passkey.create(anas_options)
    error = await expect_rpc_error(confirm(shared, ana, beas_id, response))
    assert error.reason == "FACTOR_NOT_FOUND"
    await confirm(shared, ana, anas_id, response)
    error = await expect_rpc_error(confirm(shared, ana, anas_id, response))
    assert error.reason == "STEP_UP_REQUIRED"  # with two factors, it is not found
    response = passkey.create(beas_options)
    error = await expect_rpc_error(confirm(shared, bea, beas_id, response))
    assert error.reason == "PASSKEY_INVALID"  # the credential id is taken


async def test_creation_begun_before_another_is_void(shared: RunningService) -> None:
    ana, passkey = await shared.signed_in(), SoftwarePasskey()
    first_id, first = await begin_creation(shared, ana)
    second_id, _ = await begin_creation(shared, ana)
    error = await expect_rpc_error(
        confirm(shared, ana, first_id, passkey.create(first))
    )
    assert error.reason == "FACTOR_NOT_FOUND"
    error = await expect_rpc_error(
        confirm(shared, ana, second_id, passkey.create(first))
    )
    assert error.reason == "PASSKEY_INVALID"


async def test_existing_passkeys_are_not_created_again(shared: RunningService) -> None:
    """The browser learns which there are."""
    ana = await owner(shared)
    _, options = await begin_creation(shared, ana.signed_in)
    (excluded,) = options["excludeCredentials"]
    assert excluded["id"] == encode(ana.passkey.credential_id)


async def test_replayed_log_in_is_refused(shared: RunningService) -> None:
    """Also at the same time, and of a passkey without a counter."""
    ana = await owner(shared, SoftwarePasskey(step=0))
    response = ana.passkey.get(await request_options(shared))
    results = await asyncio.gather(
        *(log_in(shared, response) for _ in range(4)), return_exceptions=True
    )
    assert sum(isinstance(result, auth_pb2.TokenPair) for result in results) == 1
    await refused(shared, response)


async def test_lowered_counter_is_refused_and_reported(shared: RunningService) -> None:
    """By e-mail and in the audit log, for log-ins and second steps alike."""
    ana, root = await owner(shared), await shared.signed_in(Role.ADMIN)
    copy = ana.passkey.changed(sign_count=0)
    await log_in(shared, ana.passkey.get(await request_options(shared)))
    await refused(shared, copy.get(await request_options(shared)))
    mail = await shared.mailbox.mail(ana.user.email, "may have been copied")
    assert "Passkey" in str(mail)
    challenge = await challenge_of(shared, ana)
    copy.sign_count = 0
    response = copy.get(MessageToDict(challenge.passkey_options))
    error = await expect_rpc_error(
        shared.auth.CompleteLogin(second_step(challenge, response))
    )
    assert error.reason == "INVALID_CREDENTIALS"
    request = auth_pb2.ListAuditEventsRequest(
        user_id=ana.user.id, event="passkey.copied"
    )
    listed = await shared.auth.ListAuditEvents(request, metadata=root.metadata)
    assert [event.outcome for event in listed.items] == ["INVALID_CREDENTIALS"] * 2
    # the original still works: the owner decides what to do
    await log_in(shared, ana.passkey.get(await request_options(shared)))


async def test_backup_state_is_kept(shared: RunningService) -> None:
    """That of the creation, and of the latest use."""
    passkey = SoftwarePasskey(flags=USER_PRESENT | USER_VERIFIED | CAN_BACK_UP)
    ana = await owner(shared, passkey)
    assert not ana.factor.is_backed_up
    passkey.flags |= BACKED_UP
    await log_in(shared, passkey.get(await request_options(shared)))
    listed = await shared.auth.ListFactors(
        pb.ListFactorsRequest(), metadata=ana.metadata
    )
    assert listed.factors[0].is_backed_up


async def test_refusals_have_one_answer(shared: RunningService) -> None:
    """R1: an unknown passkey, a wrong signature or user, a disabled account."""
    ana, bea = await owner(shared), await owner(shared)
    unknown = SoftwarePasskey(user_handle=ana.passkey.user_handle)
    forged = SoftwarePasskey(
        credential_id=ana.passkey.credential_id, user_handle=ana.passkey.user_handle
    )
    anonymous = ana.passkey.changed(user_handle=b"")
    stranger = ana.passkey.changed(user_handle=bea.passkey.user_handle)
    now = datetime.now(UTC)
    await shared.accounts.edit(bea.user.id, UserEdit({"is_active": False}, "", now))
    answers = set()
    for passkey in (unknown, forged, anonymous, stranger, bea.passkey):
        error = await refused(shared, passkey.get(await request_options(shared)))
        error.status.details.pop()  # RequestInfo
        answers.add(error.status.SerializeToString())
    malformed: list[Json] = [{}, {"response": {}}, {"id": 1}, nested(60)]
    for response in malformed:
        error = await refused(shared, response)
        error.status.details.pop()
        answers.add(error.status.SerializeToString())
    assert len(answers) == 1


def nested(depth: int) -> Json:
    value: Json = {}
    for _ in range(depth // 2):
        value = {"response": value}
    return value


GARBAGE: dict[str, str] = {
    "clientDataJSON": encode(b"\xff" * 40),
    "authenticatorData": encode(b"\x00" * 36),
    "signature": "!",
    "userHandle": "A",
}


async def test_garbage_is_refused(shared: RunningService) -> None:
    """In each member of a response; so is JSON that nests deeply."""
    ana = await owner(shared)
    values: list[Any] = [None, 7, [], {}, "", encode(b"[" * 5_000)]
    for name, garbage in GARBAGE.items():
        for value in [*values, garbage]:
            response = ana.passkey.get(await request_options(shared))
            response["response"][name] = value
            await refused(shared, response)


async def test_garbage_creations_are_refused(shared: RunningService) -> None:
    """Nothing, CBOR that nests deeply, that claims to be long, or that lacks parts."""
    ana, passkey = await shared.signed_in(), SoftwarePasskey()
    long = b"\x9b\x00\x00\x00\xff\xff\xff\xff\xff"
    for garbage in (b"", b"\xff", b"\xa0", b"\x9f" * 5_000, long, b"\xa1\x63fmt\x00"):
        passkey_id, options = await begin_creation(shared, ana)
        response = passkey.create(options)
        response["response"]["attestationObject"] = encode(garbage)
        error = await expect_rpc_error(confirm(shared, ana, passkey_id, response))
        assert error.reason == "PASSKEY_INVALID"


async def test_huge_response_is_refused(shared: RunningService) -> None:
    """Before it is read: 16 KiB are far more than any authenticator sends."""
    ana = await shared.signed_in()
    huge = struct({"id": "x" * 16_384})
    challenge = pb.CompleteLoginRequest(challenge_token="A" * 64, passkey_response=huge)
    for call, field in (
        (
            shared.auth.ConfirmPasskey(
                pb.ConfirmPasskeyRequest(id=1, response=huge), metadata=ana.metadata
            ),
            "response",
        ),
        (log_in(shared, {"id": "x" * 16_384}), "response"),
        (shared.auth.CompleteLogin(challenge), "passkeyResponse"),
        (
            shared.auth.Reauthenticate(
                pb.ReauthenticateRequest(passkey_response=huge), metadata=ana.metadata
            ),
            "passkeyResponse",
        ),
    ):
        error = await expect_rpc_error(call)
        assert error.reason == "INVALID_FIELDS"
        assert field in error.message


async def test_an_account_has_at_most_ten_factors(shared: RunningService) -> None:
    ana = await owner(shared)
    for _ in range(9):
        passkey_id, options = await begin_creation(shared, ana.signed_in)
        response = SoftwarePasskey().create(options)
        await confirm(shared, ana.signed_in, passkey_id, response)
    error = await expect_rpc_error(begin_creation(shared, ana.signed_in))
    assert error.reason == "TOO_MANY_FACTORS"


async def test_deleted_passkey_logs_nobody_in(shared: RunningService) -> None:
    ana = await owner(shared)
    delete = pb.DeleteFactorRequest(id=ana.factor.id)
    await shared.auth.DeleteFactor(delete, metadata=ana.metadata)
    await shared.mailbox.mail(ana.user.email, "second factor was removed")
    await refused(shared, ana.passkey.get(await request_options(shared)))
    assert await shared.log_in(ana.user.username)


async def test_passkey_beside_an_authenticator_app(shared: RunningService) -> None:
    """The recovery codes of the first factor stay; either one completes a log-in."""
    app = await enrolled(shared)
    ana = await owner(shared, who=app.signed_in)
    assert not ana.recovery_codes
    challenge = await challenge_of(shared, ana)
    assert list(challenge.factors) == [
        pb.FACTOR_TYPE_TOTP,
        pb.FACTOR_TYPE_PASSKEY,
        pb.FACTOR_TYPE_RECOVERY_CODE,
    ]
    response = ana.passkey.get(MessageToDict(challenge.passkey_options))
    await shared.auth.CompleteLogin(second_step(challenge, response))


async def test_passkey_is_exported_without_its_key(shared: RunningService) -> None:
    ana = await owner(shared)
    answer = await shared.http.get(
        f"/api/v1/users/{ana.user.id}:export", headers=dict(ana.metadata)
    )
    (factor,) = answer.json()["factors"]
    assert factor["name"] == "Passkey"
    assert factor["transports"] == ["hybrid", "internal"]
    assert {"publicKey", "credentialId", "secret"}.isdisjoint(factor)


async def test_erased_passkey_logs_nobody_in(shared: RunningService) -> None:
    ana = await owner(shared)
    erase = user_pb2.EraseUserRequest(id=ana.user.id, current_password=PASSWORD)
    await shared.users.EraseUser(erase, metadata=ana.metadata)
    await refused(shared, ana.passkey.get(await request_options(shared)))
    # the credential id is free again
    await owner(shared, ana.passkey)


async def test_passkeys_belong_to_public_url(database_url: str, redis_url: str) -> None:
    """To its origin, as browsers write it; one of localhost is of no use there."""
    settings: dict[str, Any] = {"public_url": f"{SITE}:443/", "debug": False}
    async with running(database_url, redis_url, **settings) as service:
        ana = await owner(service, SoftwarePasskey(origin=SITE))
        options = await request_options(service)
        assert options["rpId"] == "academy.example"
        local = ana.passkey.changed(origin="http://localhost:8080")
        await refused(service, local.get(options))
        await log_in(service, ana.passkey.get(await request_options(service)))


async def test_there_are_no_passkeys_without_public_url(
    database_url: str, redis_url: str
) -> None:
    """The operator, and not the caller, has to act."""
    async with running(database_url, redis_url, debug=False) as service:
        ana = await service.signed_in()
        for call in (
            begin_creation(service, ana),
            confirm(service, ana, 1, {}),
            request_options(service),
            log_in(service, {}),
        ):
            error = await expect_rpc_error(call)
            assert error.code is grpc.StatusCode.FAILED_PRECONDITION
            assert error.reason == "PASSKEYS_NOT_CONFIGURED"
            assert "PUBLIC_URL" in error.message


async def test_log_ins_with_passkeys_of_one_address_are_limited(
    limited: RunningService,
) -> None:
    await limited.sign_up()  # the connection to Redis is open
    for _ in range(20):
        await refused(limited, {})
    error = await expect_rpc_error(log_in(limited, {}))
    assert error.reason == "RATE_LIMITED"
