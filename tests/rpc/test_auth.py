"""AuthService over gRPC, with the full chain."""

import asyncio
from ipaddress import ip_network

import grpc
import jwt
import pytest
from google.rpc import error_details_pb2

from blatam.auth.v1 import auth_pb2 as pb
from blatam.user.v1 import user_pb2
from edge.batching import BatchingPort
from edge.port import CallError
from server.rpc.addresses import TrustedProxies, peer_address
from tests.running import PASSWORD, Running, SignedIn
from tests.status import refusal

ME = user_pb2.GetCurrentUserRequest()
LOGIN = "/blatam.auth.v1.AuthService/Login"


def login(identifier: str, password: str = PASSWORD) -> pb.LoginRequest:
    return pb.LoginRequest(identifier=identifier, password=password)


async def refresh(service: Running, token: str) -> pb.TokenPair:
    request = pb.RefreshTokenRequest(refresh_token=token)
    return (await service.auth.RefreshToken(request)).tokens


async def test_tokens_verify_with_the_published_keys(shared: Running) -> None:
    """An internal shared needs the key set and nothing else."""
    ana = await shared.signed_in()
    keys = (await shared.auth.GetJsonWebKeySet(pb.GetJsonWebKeySetRequest())).keys
    assert len(keys) >= 2
    kid = jwt.get_unverified_header(ana.tokens.access_token)["kid"]
    published = next(key for key in keys if key.kid == kid)
    names = [field.name for field in published.DESCRIPTOR.fields]
    key = jwt.PyJWK({name: getattr(published, name) for name in names})
    claims = jwt.decode(
        ana.tokens.access_token, key, algorithms=["ES256"], audience="blatam"
    )
    assert claims["sub"] == str(ana.user.id)
    assert (ana.tokens.token_type, ana.tokens.expires_in) == ("Bearer", 900)


@pytest.mark.parametrize(
    "value",
    ["Bearer x", "Basic YTpi", "Bearer ", "x", "Bearer blatam_sk_x"],
)
async def test_bad_tokens(shared: Running, value: str) -> None:
    """R16, R41: refused, all with the same words."""
    header = (("authorization", value),)
    refused = await refusal(shared.users.GetCurrentUser(ME, metadata=header))
    assert refused.code is grpc.StatusCode.UNAUTHENTICATED
    assert refused.reason == "TOKEN_INVALID"


async def test_no_token(shared: Running) -> None:
    refused = await refusal(shared.users.GetCurrentUser(ME))
    assert refused.reason == "TOKEN_MISSING"


async def test_refresh_twice_then_the_first_again(shared: Running) -> None:
    """R18: the grandparent is refused and ends the session, access tokens too."""
    ana = await shared.signed_in()
    second = await refresh(shared, ana.tokens.refresh_token)
    third = await refresh(shared, second.refresh_token)
    for token in (ana.tokens.refresh_token, third.refresh_token):
        request = pb.RefreshTokenRequest(refresh_token=token)
        refused = await refusal(shared.auth.RefreshToken(request))
        assert refused.reason == "REFRESH_TOKEN_INVALID"
    for tokens in (ana.tokens, second, third):
        who = SignedIn(ana.user, tokens)
        call = shared.users.GetCurrentUser(ME, metadata=who.metadata)
        assert (await refusal(call)).reason == "TOKEN_INVALID"


async def test_twenty_refreshes_at_once_have_one_successor(shared: Running) -> None:
    """R19, L16: retries and races neither fork nor end the session."""
    ana = await shared.signed_in()
    pairs = await asyncio.gather(
        *(refresh(shared, ana.tokens.refresh_token) for _ in range(20))
    )
    assert len({pair.refresh_token for pair in pairs}) == 1
    assert await refresh(shared, pairs[0].refresh_token)


async def test_logging_out(shared: Running) -> None:
    """R22: the access token is refused by the next call; other sessions live on."""
    ana = await shared.signed_in()
    again = SignedIn(ana.user, await shared.log_in(ana.user.email))
    await shared.auth.Logout(pb.LogoutRequest(), metadata=ana.metadata)
    call = shared.users.GetCurrentUser(ME, metadata=ana.metadata)
    assert (await refusal(call)).reason == "TOKEN_INVALID"
    assert await shared.users.GetCurrentUser(ME, metadata=again.metadata)


async def test_failed_log_ins_answer_alike(shared: Running) -> None:
    """R1: unknown and wrong differ in nothing but the request id."""
    ana = await shared.signed_in()
    seen = set()
    for request in (login("nobody"), login(ana.user.username, "Wrong7horse")):
        refused = await refusal(shared.auth.Login(request))
        refused.status.details.pop()  # RequestInfo
        seen.add(refused.status.SerializeToString())
    assert len(seen) == 1


async def test_a_sixth_try_within_a_minute(limited: Running) -> None:
    """Login's limit: told when to come again, in RetryInfo; another name may go on."""
    ana = await limited.sign_up()
    for _ in range(5):
        wrong = login(ana.username, "Wrong7horse")
        assert (
            await refusal(limited.auth.Login(wrong))
        ).reason == "INVALID_CREDENTIALS"
    refused = await refusal(limited.auth.Login(login(ana.username.upper())))
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.reason == "RATE_LIMITED"
    delay = refused.detail(error_details_pb2.RetryInfo).retry_delay
    assert 0 < delay.ToTimedelta().total_seconds() <= 60
    assert refused.detail(error_details_pb2.QuotaFailure).violations
    await refusal(limited.auth.Login(login("somebody_else")))


async def test_a_client_cannot_name_its_own_address(limited: Running) -> None:
    """R7: x-forwarded-for from an untrusted peer changes nothing, batched or not."""
    for number in range(6):
        header = (("x-forwarded-for", f"198.51.100.{number}"),)
        call = limited.auth.Login(login("nobody"), metadata=header)
        refused = await refusal(call)
    assert refused.reason == "RATE_LIMITED"
    batching = BatchingPort(limited.channel)
    told = (("x-forwarded-for", "198.51.100.9"),)
    body = login("nobody").SerializeToString()
    with pytest.raises(CallError) as caught:
        await batching.unary(LOGIN, body, metadata=told, timeout=None)
    assert caught.value.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("198.51.100.1, 203.0.113.9", "203.0.113.9"),
        ("203.0.113.9, 10.0.0.1, 10.0.0.2", "203.0.113.9"),
        ("10.0.0.3, 10.0.0.1", "10.0.0.3"),
        ("", ""),
    ],
)
def test_the_rightmost_untrusted_hop(forwarded: str, client: str) -> None:
    """R7: what stands left of it, anybody may have written."""
    assert TrustedProxies([ip_network("10.0.0.0/8")]).client(forwarded) == client


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.1:4711", "192.0.2.1"),
        ("ipv6:[2001:db8::1]:4711", "2001:db8::1"),
        ("ipv6:%5B::1%5D:4711", "::1"),
        ("unix:/tmp/x", ""),
    ],
)
def test_peers(peer: str, address: str) -> None:
    assert peer_address(peer) == address


async def test_sessions_are_listed_and_ended(shared: Running) -> None:
    """One by one or all; another's is told from none by nobody but admins."""
    ana, bea = await shared.signed_in(), await shared.signed_in()
    second = SignedIn(ana.user, await shared.log_in(ana.user.username))
    listing = pb.ListSessionsRequest()
    listed = await shared.auth.ListSessions(listing, metadata=ana.metadata)
    assert [(s.id, s.current) for s in listed.sessions] == [
        (second.tokens.session_id, False),
        (ana.tokens.session_id, True),
    ]
    revoke = pb.RevokeSessionRequest(id=second.tokens.session_id)
    refused = await refusal(shared.auth.RevokeSession(revoke, metadata=bea.metadata))
    assert refused.reason == "SESSION_NOT_FOUND"
    await shared.auth.RevokeSession(revoke, metadata=ana.metadata)
    call = shared.users.GetCurrentUser(ME, metadata=second.metadata)
    assert (await refusal(call)).reason == "TOKEN_INVALID"
    third = SignedIn(ana.user, await shared.log_in(ana.user.username))
    await shared.auth.LogoutAll(pb.LogoutAllRequest(), metadata=ana.metadata)
    for who in (ana, third):
        call = shared.users.GetCurrentUser(ME, metadata=who.metadata)
        assert (await refusal(call)).reason == "TOKEN_INVALID"
    other = pb.ListSessionsRequest(user_id=ana.user.id)
    refused = await refusal(shared.auth.ListSessions(other, metadata=bea.metadata))
    assert refused.reason == "ACCESS_DENIED"


async def test_changing_the_password(shared: Running) -> None:
    """R13: needs the present one, holds the policy, ends the other sessions."""
    ana = await shared.signed_in()
    other = SignedIn(ana.user, await shared.log_in(ana.user.username))

    def change(current: str, new: str) -> pb.ChangePasswordRequest:
        return pb.ChangePasswordRequest(current_password=current, new_password=new)

    call = shared.auth.ChangePassword
    wrong = change("Wrong7horse", "Green8horse")
    refused = await refusal(call(wrong, metadata=ana.metadata))
    assert refused.reason == "INVALID_CREDENTIALS"
    weak = change(PASSWORD, "greenhorse")
    refused = await refusal(call(weak, metadata=ana.metadata))
    assert ("newPassword", "password.upper") in refused.violations
    await call(change(PASSWORD, "Green8horse"), metadata=ana.metadata)
    await shared.users.GetCurrentUser(ME, metadata=ana.metadata)
    ended = shared.users.GetCurrentUser(ME, metadata=other.metadata)
    assert (await refusal(ended)).reason == "TOKEN_INVALID"
    assert await shared.auth.Login(login(ana.user.username, "Green8horse"))


async def test_two_tokens_are_none(shared: Running) -> None:
    """Whichever of them a proxy has looked at, the other must not serve."""
    ana = await shared.signed_in()
    twice = (*ana.metadata, *ana.metadata)
    refused = await refusal(shared.users.GetCurrentUser(ME, metadata=twice))
    assert refused.reason == "TOKEN_INVALID"
