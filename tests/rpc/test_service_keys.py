"""Service keys: what they may call and see."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from blatam.auth.v1 import auth_pb2 as pb
from blatam.user.v1 import user_pb2
from server.domain.accounts.users import Role
from tests.running import RunningService, SignedInUser
from tests.status import expect_rpc_error


@pytest_asyncio.fixture
async def root(shared: RunningService) -> AsyncIterator[SignedInUser]:
    yield await shared.signed_in(Role.ADMIN)


async def create_key(
    shared: RunningService, root: SignedInUser, private: bool = False
) -> tuple[pb.ServiceKey, tuple[tuple[str, str], ...]]:
    request = pb.CreateServiceKeyRequest(name="billing", private_fields=private)
    answer = await shared.auth.CreateServiceKey(request, metadata=root.metadata)
    assert answer.secret.startswith("blatam_sk_")
    return answer.service_key, (("authorization", f"Bearer {answer.secret}"),)


async def test_service_key_has_service_access_only(
    shared: RunningService, root: SignedInUser
) -> None:
    """Signed-in and service calls; never those of admins or of one's own account."""
    _, key = await create_key(shared, root)
    ana = await shared.signed_in()
    verify = pb.VerifyTokenRequest(token=ana.tokens.access_token)
    response = await shared.auth.VerifyToken(verify, metadata=key)
    assert (response.active, response.user_id) == (True, ana.user.id)
    assert response.session_id == ana.tokens.session_id
    me = user_pb2.GetCurrentUserRequest()
    error = await expect_rpc_error(shared.users.GetCurrentUser(me, metadata=key))
    assert error.reason == "USER_REQUIRED"
    listing = pb.ListServiceKeysRequest()
    error = await expect_rpc_error(shared.auth.ListServiceKeys(listing, metadata=key))
    assert error.reason == "ACCESS_DENIED"
    delete = user_pb2.DeleteUserRequest(id=ana.user.id)
    error = await expect_rpc_error(shared.users.DeleteUser(delete, metadata=key))
    assert error.reason == "ACCESS_DENIED"


@pytest.mark.parametrize("private", [False, True])
async def test_service_key_sees_private_fields_if_allowed(
    shared: RunningService, root: SignedInUser, private: bool
) -> None:
    """R4: private fields only for a key with that permission."""
    _, key = await create_key(shared, root, private)
    ana = await shared.signed_in()
    request = user_pb2.GetUserRequest(id=ana.user.id)
    response = await shared.users.GetUser(request, metadata=key)
    assert bool(response.user.email) is private


async def test_verify_token_of_invalid_token_returns_inactive_only(
    shared: RunningService, root: SignedInUser
) -> None:
    """RFC 7662 2.2: nothing but `active: false`."""
    _, key = await create_key(shared, root)
    ana = await shared.signed_in()
    await shared.auth.Logout(pb.LogoutRequest(), metadata=ana.metadata)
    for token in ("x", ana.tokens.access_token, key[0][1].removeprefix("Bearer ")):
        request = pb.VerifyTokenRequest(token=token)
        response = await shared.auth.VerifyToken(request, metadata=key)
        assert response == pb.VerifyTokenResponse()


async def test_revoked_service_key_is_refused(
    shared: RunningService, root: SignedInUser
) -> None:
    """It is neither accepted nor listed, and cannot be revoked again."""
    key, metadata = await create_key(shared, root)
    revoke = pb.RevokeServiceKeyRequest(id=key.id)
    await shared.auth.RevokeServiceKey(revoke, metadata=root.metadata)
    request = user_pb2.ListUsersRequest()
    error = await expect_rpc_error(shared.users.ListUsers(request, metadata=metadata))
    assert error.reason == "TOKEN_INVALID"
    again = shared.auth.RevokeServiceKey(revoke, metadata=root.metadata)
    assert (await expect_rpc_error(again)).reason == "SERVICE_KEY_NOT_FOUND"
    listing = pb.ListServiceKeysRequest()
    listed = await shared.auth.ListServiceKeys(listing, metadata=root.metadata)
    assert key.id not in {other.id for other in listed.service_keys}
