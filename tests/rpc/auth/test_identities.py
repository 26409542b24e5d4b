"""Log-ins with identity providers, over gRPC and REST, and linked identities."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import grpc
import httpx
import jwt
import pytest
import pytest_asyncio
import sqlalchemy as sa
from oidc_provider_mock import User, run_server_in_thread
from sqlalchemy.ext.asyncio import AsyncEngine

from blatam.auth.v1 import auth_pb2, factor_pb2
from blatam.auth.v1 import identity_pb2 as pb
from blatam.user.v1 import user_pb2
from server.domain.accounts.users import Role
from server.store.connections.connect import Database
from tests.authenticator_app import enrol, enrolled
from tests.conftest import Servers, fresh_database, key_space
from tests.identity_provider import (
    FakeProvider,
    Response,
    entry,
    fake_provider,
    write_entries,
)
from tests.mailbox import token_of
from tests.running import PASSWORD, RunningService, SignedInUser, running
from tests.status import RpcError, expect_rpc_error

MOCK_USERS = (
    User(
        sub="ana-1",
        claims={
            "email": "Ana@School.example",
            "email_verified": True,
            "preferred_username": "ana_of_school",
        },
    ),
    User(sub="bea-1", claims={"email": "bea@school.example"}),
)


@dataclass(frozen=True, slots=True)
class Federation:
    """A service with its providers."""

    service: RunningService
    fake: FakeProvider
    other: FakeProvider
    database_url: str

    async def begin(self, provider: str = "fake") -> pb.BeginFederatedLoginResponse:
        request = pb.BeginFederatedLoginRequest(provider_id=provider)
        return await self.service.auth.BeginFederatedLogin(request)

    async def redirected(
        self, subject: str, access_token: str = "", **claims: Any
    ) -> pb.CompleteFederatedLoginRequest:
        """Return the request that completes the log-in of a subject."""
        begun = await self.begin()
        sent = self.fake.authorize(begun.authorization_url, subject, **claims)
        return pb.CompleteFederatedLoginRequest(
            **sent, client_nonce=begun.client_nonce, access_token=access_token
        )

    async def complete(
        self, request: pb.CompleteFederatedLoginRequest
    ) -> auth_pb2.CompleteFederatedLoginResponse:
        return await self.service.auth.CompleteFederatedLogin(request)

    async def log_in(
        self, subject: str, access_token: str = "", **claims: Any
    ) -> auth_pb2.CompleteFederatedLoginResponse:
        request = await self.redirected(subject, access_token, **claims)
        return await self.complete(request)

    async def sign_up(self, subject: str) -> SignedInUser:
        """Return the new account of a subject."""
        email = f"{subject}@example.com"
        response = await self.log_in(subject, email=email, email_verified=True)
        return await self.user_of(response.tokens)

    async def user_of(self, tokens: auth_pb2.TokenPair) -> SignedInUser:
        who = SignedInUser(user_pb2.User(), tokens)
        current = await self.service.users.GetCurrentUser(
            user_pb2.GetCurrentUserRequest(), metadata=who.metadata
        )
        return SignedInUser(current.user, tokens)

    async def refused(
        self, request: pb.CompleteFederatedLoginRequest, reason: str
    ) -> RpcError:
        error = await expect_rpc_error(self.complete(request))
        assert error.reason == reason
        return error

    async def identities(self, who: SignedInUser) -> list[pb.Identity]:
        request = pb.ListIdentitiesRequest()
        listed = await self.service.auth.ListIdentities(request, metadata=who.metadata)
        return list(listed.identities)

    async def unlink(self, who: SignedInUser, identity_id: int) -> None:
        request = pb.UnlinkIdentityRequest(id=identity_id)
        await self.service.auth.UnlinkIdentity(request, metadata=who.metadata)

    async def sql(self, statement: str, **values: object) -> list[Any]:
        database = Database(self.database_url)
        async with database.transaction() as connection:
            result = await connection.execute(sa.text(statement), values)
            rows = list(result) if result.returns_rows else []
        await database.close()
        return rows


@asynccontextmanager
async def federation(
    database_url: str, redis_url: str, folder: Path
) -> AsyncIterator[Federation]:
    with run_server_in_thread(user_claims=MOCK_USERS) as mock:
        mock_issuer = f"http://localhost:{mock.server_port}"
        async with fake_provider() as fake, fake_provider() as other:
            path = write_entries(
                folder,
                entry("mock", mock_issuer, folder, name="School"),
                entry("fake", fake.issuer, folder),
                entry("other", other.issuer, folder),
            )
            url = "https://academy.test"
            async with running(
                database_url, redis_url, oidc_providers=path, public_url=url
            ) as service:
                yield Federation(service, fake, other, database_url)


@pytest_asyncio.fixture(scope="module")
async def joined(
    servers: Servers,
    admin: AsyncEngine,
    template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Federation]:
    folder = tmp_path_factory.mktemp("providers")
    async with (
        fresh_database(servers, admin, template) as url,
        federation(url, key_space(servers, 7), folder) as started,
    ):
        yield started


@pytest.fixture
def idp(joined: Federation) -> Federation:
    """Return the shared federation, whose provider follows the specification again."""
    for provider in (joined.fake, joined.other):
        provider.claims.clear()
        provider.responses.clear()
        provider.sign = None
    return joined


def claims_of(tokens: auth_pb2.TokenPair) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(
        tokens.access_token, options={"verify_signature": False}
    )
    return claims


async def browse(url: str, subject: str) -> dict[str, str]:
    """Log in on the page of the mock; return the parameters of its redirect."""
    async with httpx.AsyncClient() as browser:
        assert (await browser.get(url)).is_success
        answer = await browser.post(url, data={"sub": subject})
    location = urlsplit(answer.headers["location"])
    assert location.path == "/federated-login"
    return {name: values[0] for name, values in parse_qs(location.query).items()}


# the mock uses what its libraries deprecate
@pytest.mark.filterwarnings("ignore:get_jwt_config:DeprecationWarning")
async def test_log_in_over_rest(idp: Federation) -> None:
    """From the list of providers to a session; the second log-in finds the account."""
    http = idp.service.http
    listed = (await http.get("/api/v1/auth/identity-providers")).json()
    assert listed["providers"] == [
        {"id": "mock", "name": "School"},
        {"id": "fake", "name": "Fake"},
        {"id": "other", "name": "Other"},
    ]
    ids = []
    for _ in range(2):
        begun = (
            await http.post(
                "/api/v1/auth/federated-login:begin", json={"providerId": "mock"}
            )
        ).json()
        assert begun["expiresIn"] == 600
        sent = await browse(begun["authorizationUrl"], "ana-1")
        assert sent["state"] == begun["state"]
        body = {"clientNonce": begun["clientNonce"], **sent}
        answer = await http.post(
            "/api/v1/auth/federated-login:complete",
            json=body,
            headers={"x-token-mode": "cookie", "origin": "https://academy.test"},
        )
        assert answer.status_code == 200
        tokens = answer.json()
        assert not tokens.get("refreshToken")
        assert "__Host-refresh_token" in answer.headers["set-cookie"]
        headers = {"authorization": f"Bearer {tokens['accessToken']}"}
        user = (await http.get("/api/v1/users/me", headers=headers)).json()
        assert (user["email"], user["emailVerified"]) == ("ana@school.example", True)
        assert user["username"] == "ana_of_school"
        ids.append(user["id"])
    assert ids[0] == ids[1]
    mail = await idp.service.mailbox.mail("ana@school.example", "Another way to log in")
    assert "School" in str(mail)
    identities = (await http.get("/api/v1/auth/identities", headers=headers)).json()
    assert identities["identities"][0]["email"] == "Ana@School.example"


@pytest.mark.filterwarnings("ignore:get_jwt_config:DeprecationWarning")
async def test_unverified_address_of_the_mock_creates_no_account(
    idp: Federation,
) -> None:
    begun = await idp.begin("mock")
    sent = await browse(begun.authorization_url, "bea-1")
    request = pb.CompleteFederatedLoginRequest(**sent, client_nonce=begun.client_nonce)
    error = await idp.refused(request, "IDENTITY_NOT_LINKED")
    assert error.code is grpc.StatusCode.FAILED_PRECONDITION


async def test_log_in_over_grpc(idp: Federation) -> None:
    """One factor, by the name of our own method; the session is as any other."""
    who = await idp.sign_up("carl")
    claims = claims_of(who.tokens)
    assert (claims["acr"], claims["amr"]) == ("aal1", ["fed"])
    assert who.user.username.startswith("user_")  # not of the address
    (identity,) = await idp.identities(who)
    assert identity.provider_id == "fake"
    assert identity.issuer == idp.fake.issuer
    assert not identity.HasField("last_used_at")
    again = await idp.log_in("carl", email="new@example.com", email_verified=False)
    assert (await idp.user_of(again.tokens)).user.id == who.user.id
    (identity,) = await idp.identities(who)
    assert identity.email == "new@example.com"
    assert identity.HasField("last_used_at")
    refresh = auth_pb2.RefreshTokenRequest(refresh_token=again.tokens.refresh_token)
    tokens = (await idp.service.auth.RefreshToken(refresh)).tokens
    assert claims_of(tokens)["amr"] == ["fed"]


async def test_older_session_of_the_client_ends(idp: Federation) -> None:
    who = await idp.sign_up("dora")
    request = await idp.redirected("dora")
    request.refresh_token = who.tokens.refresh_token
    await idp.complete(request)
    refresh = auth_pb2.RefreshTokenRequest(refresh_token=who.tokens.refresh_token)
    error = await expect_rpc_error(idp.service.auth.RefreshToken(refresh))
    assert error.reason == "REFRESH_TOKEN_INVALID"


async def test_unknown_provider_is_not_found(idp: Federation) -> None:
    error = await expect_rpc_error(idp.begin("nobody"))
    assert error.reason == "IDENTITY_PROVIDER_NOT_FOUND"


async def test_provider_that_does_not_respond_is_unavailable(idp: Federation) -> None:
    request = await idp.redirected("eve")
    idp.fake.responses["/token"] = Response(status=503)
    error = await idp.refused(request, "IDENTITY_PROVIDER_UNAVAILABLE")
    assert error.code is grpc.StatusCode.UNAVAILABLE
    assert "token" not in error.message


async def test_state_is_used_once(idp: Federation) -> None:
    """Also by calls at the same time, of which the provider sees one."""
    request = await idp.redirected(
        "finn", email="finn@example.com", email_verified=True
    )
    before = idp.fake.count("/token")
    calls = (idp.complete(request) for _ in range(4))
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(not isinstance(result, Exception) for result in results) == 1
    assert idp.fake.count("/token") == before + 1
    await idp.refused(request, "FEDERATED_LOGIN_INVALID")


async def test_state_belongs_to_the_client_that_began(idp: Federation) -> None:
    """Whoever sees the redirect, or sends a victim to one, cannot complete it."""
    request = await idp.redirected("gil", email="gil@example.com", email_verified=True)
    stolen = pb.CompleteFederatedLoginRequest()
    stolen.CopyFrom(request)
    stolen.client_nonce = (await idp.begin()).client_nonce
    before = idp.fake.count("/token")
    await idp.refused(stolen, "FEDERATED_LOGIN_INVALID")
    stolen.client_nonce = ""
    await idp.refused(stolen, "INVALID_FIELDS")
    assert idp.fake.count("/token") == before
    await idp.complete(request)  # the guesses have not used it up


async def test_guesses_of_the_client_nonce_are_limited(idp: Federation) -> None:
    request = await idp.redirected("hal", email="hal@example.com", email_verified=True)
    nonce, request.client_nonce = request.client_nonce, "guess"
    for _ in range(5):
        await idp.refused(request, "FEDERATED_LOGIN_INVALID")
    request.client_nonce = nonce
    await idp.refused(request, "FEDERATED_LOGIN_INVALID")


async def test_malformed_and_foreign_states_are_refused(idp: Federation) -> None:
    request = await idp.redirected("ida")
    challenge = await idp.begin()
    for state in ("x", "A" * 64, challenge.state[:-1] + "_", "é"):
        request.state = state
        await idp.refused(request, "FEDERATED_LOGIN_INVALID")


async def test_state_expires(idp: Federation) -> None:
    request = await idp.redirected("ida")
    await idp.sql(
        "update challenges set expires_at = now() - interval '1 s' where kind = 5"
    )
    await idp.refused(request, "FEDERATED_LOGIN_INVALID")


async def test_state_of_another_provider_is_of_no_use(idp: Federation) -> None:
    """Mix-up: the code of one provider never goes to another one."""
    begun = await idp.begin("other")
    fake = await idp.begin("fake")
    sent = idp.fake.authorize(fake.authorization_url, "ana")
    request = pb.CompleteFederatedLoginRequest(
        code=sent["code"],
        state=begun.state,
        client_nonce=begun.client_nonce,
        iss=idp.fake.issuer,
    )
    before = idp.other.count("/token")
    await idp.refused(request, "FEDERATED_LOGIN_INVALID")
    assert idp.other.count("/token") == before


@pytest.mark.parametrize(
    "claims",
    [
        {"nonce": None},
        {"nonce": "another"},
        {"aud": "other"},
        {"iss": "https://evil.test"},
        {"exp": 1},
    ],
)
async def test_invalid_id_token_is_refused(
    idp: Federation, claims: dict[str, Any]
) -> None:
    request = await idp.redirected(
        "jan", email="jan@example.com", email_verified=True, **claims
    )
    await idp.refused(request, "FEDERATED_LOGIN_INVALID")
    assert not await idp.sql("select from users where email = 'jan@example.com'")


async def test_unsigned_id_token_is_refused(idp: Federation) -> None:
    idp.fake.sign = lambda claims: jwt.encode(claims, "", "none")
    request = await idp.redirected("jan", email="jan@example.com", email_verified=True)
    await idp.refused(request, "FEDERATED_LOGIN_INVALID")


async def test_stored_challenge_has_no_secret(idp: Federation) -> None:
    begun = await idp.begin()
    rows = await idp.sql("select data::text, secret_hash::text from challenges")
    text = f"{rows}"
    assert begun.state not in text
    assert begun.client_nonce not in text


@pytest.mark.parametrize("verified", [True, False])
async def test_existing_account_is_not_linked_by_its_address(
    idp: Federation, verified: bool
) -> None:
    """Neither by a verified nor by an unverified one; the answer is the same."""
    ana = await idp.service.signed_in()
    claims: dict[str, Any] = {
        "email": ana.user.email.upper(),
        "email_verified": verified,
    }
    request = await idp.redirected(f"thief-{verified}", **claims)
    await idp.refused(request, "IDENTITY_NOT_LINKED")
    assert await idp.identities(ana) == []


@pytest.mark.parametrize(
    "claims",
    [
        {"email": "kim@example.com"},
        {"email": "kim@example.com", "email_verified": False},
        {"email": "kim@example.com", "email_verified": "no"},
        {"email": "", "email_verified": True},
        {"email": "kim", "email_verified": True},
        {"email": "ki\u212a@example.com", "email_verified": True},
        {"email": f"{'k' * 250}@example.com", "email_verified": True},
    ],
)
async def test_new_account_needs_a_verified_address(
    idp: Federation, claims: dict[str, Any]
) -> None:
    await idp.refused(await idp.redirected("kim", **claims), "IDENTITY_NOT_LINKED")


async def test_preferred_username_may_be_taken_or_invalid(idp: Federation) -> None:
    taken = await idp.service.sign_up()
    for number, name in enumerate([taken.username.upper(), "a b", "kim@example.com"]):
        response = await idp.log_in(
            f"kim-{number}",
            email=f"kim{number}@example.com",
            email_verified=True,
            preferred_username=name,
        )
        who = await idp.user_of(response.tokens)
        assert who.user.username.startswith("user_")


async def test_first_log_ins_at_the_same_time_create_one_account(
    idp: Federation,
) -> None:
    claims: dict[str, Any] = {"email": "lea@example.com", "email_verified": True}
    requests = [await idp.redirected("lea", **claims) for _ in range(4)]
    responses = await asyncio.gather(*map(idp.complete, requests))
    users = {(await idp.user_of(r.tokens)).user.id for r in responses}
    assert len(users) == 1


async def test_owner_links_an_identity(idp: Federation) -> None:
    """With an access token; then the identity opens sessions, and the owner is told."""
    ana = await idp.service.signed_in()
    linked = await idp.log_in(
        "ana-linked", ana.tokens.access_token, email="any@example.com"
    )
    assert (await idp.user_of(linked.tokens)).user.id == ana.user.id
    mail = await idp.service.mailbox.mail(ana.user.email, "Another way to log in")
    assert "Fake" in str(mail)
    again = await idp.log_in("ana-linked")
    assert (await idp.user_of(again.tokens)).user.id == ana.user.id
    # to link it again is no error, to link it to another account is one
    await idp.log_in("ana-linked", ana.tokens.access_token)
    assert len(await idp.identities(ana)) == 1
    bea = await idp.service.signed_in()
    request = await idp.redirected("ana-linked", bea.tokens.access_token)
    await idp.refused(request, "IDENTITY_TAKEN")


async def test_link_needs_a_recent_log_in(idp: Federation) -> None:
    """Of the owner: no old, ended, malformed or impersonating token."""
    ana = await idp.service.signed_in()
    await idp.sql(
        "update sessions set authenticated_at = now() - interval '11 min' "
        "where user_id = :id",
        id=ana.user.id,
    )
    refresh = auth_pb2.RefreshTokenRequest(refresh_token=ana.tokens.refresh_token)
    old = (await idp.service.auth.RefreshToken(refresh)).tokens
    request = await idp.redirected("mia", old.access_token)
    await idp.refused(request, "STEP_UP_REQUIRED")
    # the state is not used up: the client reauthenticates, and sends it again
    request.access_token = "x"
    await idp.refused(request, "TOKEN_INVALID")
    bea = await idp.service.signed_in()
    await idp.service.auth.Logout(auth_pb2.LogoutRequest(), metadata=bea.metadata)
    request.access_token = bea.tokens.access_token
    await idp.refused(request, "TOKEN_INVALID")
    carl = await idp.service.signed_in()
    request.access_token = carl.tokens.access_token
    await idp.complete(request)


async def test_link_needs_the_second_factor_of_the_account(idp: Federation) -> None:
    ana = await idp.service.signed_in()
    with_app = await enrol(idp.service, ana)
    request = await idp.redirected("nia", ana.tokens.access_token)
    error = await idp.refused(request, "STEP_UP_REQUIRED")
    assert "second factor" in error.message
    request.access_token = with_app.signed_in.tokens.access_token
    response = await idp.complete(request)
    assert response.WhichOneof("outcome") == "challenge"
    assert len(await idp.identities(with_app.signed_in)) == 1


async def test_account_with_a_second_factor_gets_a_challenge(idp: Federation) -> None:
    """A provider is one factor; over REST, the challenge has its name."""
    ana = await enrolled(idp.service)
    await idp.log_in("olga", ana.signed_in.tokens.access_token)
    request = await idp.redirected("olga")
    body = {"code": request.code, "state": request.state}
    answer = await idp.service.http.post(
        "/api/v1/auth/federated-login:complete",
        json={**body, "clientNonce": request.client_nonce},
    )
    assert list(answer.json()) == ["challenge"]
    challenge = (await idp.log_in("olga")).challenge
    complete = factor_pb2.CompleteLoginRequest(
        challenge_token=challenge.challenge_token, totp_code=ana.next_code()
    )
    response = await idp.service.auth.CompleteLogin(complete)
    claims = claims_of(response.tokens)
    assert (claims["acr"], claims["amr"]) == ("aal2", ["fed", "otp", "mfa"])


async def test_disabled_and_deleted_accounts_are_refused(idp: Federation) -> None:
    who = await idp.sign_up("pia")
    await idp.sql("update users set is_active = false where id = :id", id=who.user.id)
    await idp.refused(await idp.redirected("pia"), "FEDERATED_LOGIN_INVALID")
    await idp.sql("update users set is_active = true where id = :id", id=who.user.id)
    delete = user_pb2.DeleteUserRequest(id=who.user.id)
    await idp.service.users.DeleteUser(delete, metadata=who.metadata)
    request = await idp.redirected("pia", email="pia@example.com", email_verified=True)
    await idp.refused(request, "FEDERATED_LOGIN_INVALID")


async def test_last_way_in_stays(idp: Federation) -> None:
    """An account without a password keeps its last identity until it has one."""
    who = await idp.sign_up("quin")
    (identity,) = await idp.identities(who)
    error = await expect_rpc_error(idp.unlink(who, identity.id))
    assert error.reason == "LAST_WAY_IN"
    await set_password(idp, who)
    who = SignedInUser(who.user, await idp.service.log_in(who.user.username))
    await idp.unlink(who, identity.id)
    mail = await idp.service.mailbox.mail(who.user.email, "way to log in was removed")
    assert "fake" in str(mail)
    await idp.refused(await idp.redirected("quin"), "IDENTITY_NOT_LINKED")


async def set_password(idp: Federation, who: SignedInUser) -> None:
    """Reset the password, by the link that is mailed."""
    request = auth_pb2.RequestPasswordResetRequest(identifier=who.user.email)
    await idp.service.auth.RequestPasswordReset(request)
    mail = await idp.service.mailbox.mail(who.user.email, "new password")
    reset = auth_pb2.ResetPasswordRequest(token=token_of(mail), new_password=PASSWORD)
    await idp.service.auth.ResetPassword(reset)


async def test_one_of_two_identities_may_go(idp: Federation) -> None:
    who = await idp.sign_up("rita")
    await idp.log_in("rita-2", who.tokens.access_token)
    first, second = await idp.identities(who)
    await idp.unlink(who, first.id)
    assert [left.id for left in await idp.identities(who)] == [second.id]
    error = await expect_rpc_error(idp.unlink(who, second.id))
    assert error.reason == "LAST_WAY_IN"


async def test_account_without_a_password_has_none(idp: Federation) -> None:
    """No password logs in, changes or reauthenticates, not even an empty one."""
    who = await idp.sign_up("sam")
    auth = idp.service.auth
    login = auth_pb2.LoginRequest(identifier=who.user.username, password="x")
    error = await expect_rpc_error(auth.Login(login))
    assert error.reason == "INVALID_CREDENTIALS"
    change = auth_pb2.ChangePasswordRequest(
        current_password="x", new_password="Green8horse"
    )
    error = await expect_rpc_error(auth.ChangePassword(change, metadata=who.metadata))
    assert error.reason == "INVALID_CREDENTIALS"
    proof = factor_pb2.ReauthenticateRequest(password=PASSWORD)
    error = await expect_rpc_error(auth.Reauthenticate(proof, metadata=who.metadata))
    assert error.reason == "INVALID_CREDENTIALS"


async def test_identity_of_another_user_is_not_found(idp: Federation) -> None:
    ana, bea = await idp.sign_up("tara"), await idp.sign_up("uli")
    (identity,) = await idp.identities(ana)
    error = await expect_rpc_error(idp.unlink(bea, identity.id))
    assert error.reason == "IDENTITY_NOT_FOUND"
    assert len(await idp.identities(ana)) == 1


async def test_unlink_needs_the_second_factor_of_the_account(idp: Federation) -> None:
    ana = await idp.service.signed_in()
    await idp.log_in("vera", ana.tokens.access_token)
    with_app = await enrol(idp.service, ana)
    (identity,) = await idp.identities(with_app.signed_in)
    error = await expect_rpc_error(idp.unlink(ana, identity.id))
    assert error.reason in ("STEP_UP_REQUIRED", "TOKEN_INVALID")
    await idp.unlink(with_app.signed_in, identity.id)


async def test_identities_of_a_user_are_limited(idp: Federation) -> None:
    ana = await idp.service.signed_in()
    await idp.sql(
        "insert into identities (user_id, issuer, subject, provider, created_at) "
        "select id, 'https://x', id || '-' || n, 'x', now() "
        "from users, generate_series(1, 20) n where id = :id",
        id=ana.user.id,
    )
    request = await idp.redirected("one-more", ana.tokens.access_token)
    await idp.refused(request, "TOO_MANY_FACTORS")


async def test_events_are_audited(idp: Federation) -> None:
    """The new account, its identity, the session, and a refused log-in."""
    boss = await idp.service.signed_in(Role.ADMIN)
    who = await idp.sign_up("walt")
    await idp.log_in("walt-2", who.tokens.access_token)
    _, second = await idp.identities(who)
    await idp.unlink(who, second.id)
    request = auth_pb2.ListAuditEventsRequest(user_id=who.user.id, page_size=100)
    listed = await idp.service.auth.ListAuditEvents(request, metadata=boss.metadata)
    events = [(e.event, e.actor, e.outcome) for e in reversed(listed.items)]
    own = f"user:{who.user.id}"
    assert events == [
        ("user.created", own, "OK"),
        ("identity.linked", own, "OK"),
        ("session.opened", own, "OK"),
        ("identity.linked", own, "OK"),
        ("session.opened", own, "OK"),
        ("identity.unlinked", own, "OK"),
    ]


async def test_identities_are_exported_and_erased(idp: Federation) -> None:
    who = await idp.sign_up("xena")
    export = user_pb2.ExportUserRequest(id=who.user.id)
    parts = idp.service.users.ExportUser(export, metadata=who.metadata)
    text = "".join([str(part) async for part in parts])
    assert idp.fake.issuer in text
    assert "xena@example.com" in text
    await set_password(idp, who)
    who = SignedInUser(who.user, await idp.service.log_in(who.user.username))
    erase = user_pb2.EraseUserRequest(id=who.user.id, current_password=PASSWORD)
    await idp.service.users.EraseUser(erase, metadata=who.metadata)
    assert not await idp.sql("select from identities where subject = 'xena'")
    # the address is free again
    assert (await idp.sign_up("xena")).user.id != who.user.id
