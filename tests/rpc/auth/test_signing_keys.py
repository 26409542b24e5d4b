"""Rotation of signing keys while the service is in use."""

import asyncio
from itertools import count

import jwt
import pytest

from blatam.auth.v1 import auth_pb2 as pb
from blatam.user.v1 import user_pb2
from server.domain.accounts.users import Role
from tests.running import RunningService, SignedInUser, running
from tests.status import expect_rpc_error

NOWHERE = "unix:///nowhere"


def kid(token: str) -> str:
    return str(jwt.get_unverified_header(token)["kid"])


async def rotated(
    service: RunningService, root: SignedInUser
) -> pb.RotateSigningKeyResponse:
    request = pb.RotateSigningKeyRequest(force=True)
    return await service.auth.RotateSigningKey(request, metadata=root.metadata)


@pytest.mark.parametrize("redis", [True, False])
async def test_rotation_fails_no_calls(
    database_url: str, redis_url: str, redis: bool
) -> None:
    """R17: two processes, with log-ins and calls throughout; with Redis and without."""
    redis_url = redis_url if redis else NOWHERE
    async with (
        running(database_url, redis_url) as one,
        running(database_url, redis_url) as two,
    ):
        root = await one.signed_in(Role.ADMIN)
        people = [await one.signed_in() for _ in range(3)]
        done, seen = asyncio.Event(), [root.tokens.access_token]

        async def use(
            first: RunningService, second: RunningService, person: SignedInUser
        ) -> None:
            """Get tokens from one process, and call both processes with them."""
            mine = person.tokens
            for turn in count():
                if done.is_set():
                    return
                # hashing is slow: most tokens come from refreshes
                if turn % 5 == 0 and turn < 15:
                    mine = await first.log_in(person.user.username)
                mine = await refreshed(second, mine)
                seen.append(mine.access_token)
                for token in (seen[0], seen[-1], seen[len(seen) // 2]):
                    await asyncio.gather(*(me(at, token) for at in (first, second)))

        ends = [(one, two), (two, one), (one, two)]
        users = [
            asyncio.create_task(use(first, second, person))
            for (first, second), person in zip(ends, people, strict=True)
        ]
        for service in (one, two, one):
            before = len(seen)
            await rotated(service, root)
            while len(seen) < before + 12 and not any(u.done() for u in users):  # noqa: ASYNC110 - seen from outside
                await asyncio.sleep(0.01)
        done.set()
        await asyncio.gather(*users)
        assert len({kid(token) for token in seen}) >= 3


async def me(service: RunningService, token: str) -> user_pb2.User:
    mine = (("authorization", f"Bearer {token}"),)
    request = user_pb2.GetCurrentUserRequest()
    return (await service.users.GetCurrentUser(request, metadata=mine)).user


async def refreshed(service: RunningService, tokens: pb.TokenPair) -> pb.TokenPair:
    request = pb.RefreshTokenRequest(refresh_token=tokens.refresh_token)
    return (await service.auth.RefreshToken(request)).tokens


async def test_key_set_contains_next_active_and_retired(
    service: RunningService,
) -> None:
    """R17: a key is published before and after it signs; the rotation is audited."""
    root = await service.signed_in(Role.ADMIN)
    rotation = await rotated(service, root)
    states = [pb.SigningKeyState.Name(key.state)[18:] for key in rotation.keys]
    assert states == ["NEXT", "ACTIVE", "RETIRED"]
    assert kid(root.tokens.access_token) == rotation.keys[2].kid
    published = await service.auth.GetJsonWebKeySet(pb.GetJsonWebKeySetRequest())
    assert {key.kid for key in published.keys} == {key.kid for key in rotation.keys}
    again = await service.log_in(root.user.username)
    assert kid(again.access_token) == rotation.keys[1].kid
    request = pb.ListAuditEventsRequest(event="signing_key.rotated")
    events = await service.auth.ListAuditEvents(request, metadata=root.metadata)
    assert [event.actor for event in events.items] == [f"user:{root.user.id}"]


async def test_rotation_waits_for_cached_key_sets(shared: RunningService) -> None:
    """Verifiers cache the key set for 300 seconds, so a new key must wait."""
    root = await shared.signed_in(Role.ADMIN)
    call = shared.auth.RotateSigningKey(
        pb.RotateSigningKeyRequest(), metadata=root.metadata
    )
    error = await expect_rpc_error(call)
    assert (error.code.name, error.reason) == (
        "FAILED_PRECONDITION",
        "NEXT_KEY_TOO_NEW",
    )
    answer = await shared.http.post(
        "/api/v1/auth/signing-keys:rotate", json={}, headers=root.headers
    )
    assert answer.status_code == 400
    assert 1 <= int(answer.headers["retry-after"]) <= 600


async def test_key_of_other_process_is_read(database_url: str) -> None:
    """After two forced rotations, a process without messages reads the keys."""
    async with (
        running(database_url, NOWHERE) as one,
        running(database_url, NOWHERE) as two,
    ):
        root = await one.signed_in(Role.ADMIN)
        for _ in range(2):
            await rotated(one, root)
        new = await one.log_in(root.user.username)
        mine = (("authorization", f"Bearer {new.access_token}"),)
        verify = pb.VerifyTokenRequest(token=new.access_token)
        assert (await me(two, new.access_token)).id == root.user.id
        assert (await two.auth.VerifyToken(verify, metadata=mine)).active
