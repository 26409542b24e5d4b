"""The audit log: event, actor, address and outcome of calls."""

from blatam.auth.v1 import auth_pb2 as pb
from blatam.user.v1 import user_pb2
from server.domain.accounts.users import Role
from tests.running import RunningService, SignedInUser
from tests.status import expect_rpc_error


async def events(
    shared: RunningService, admin: SignedInUser, user_id: int
) -> list[tuple[str, str, str, str]]:
    request = pb.ListAuditEventsRequest(user_id=user_id, page_size=100)
    listed = await shared.auth.ListAuditEvents(request, metadata=admin.metadata)
    return [(e.event, e.actor, e.outcome, e.address) for e in reversed(listed.items)]


async def test_calls_of_an_account_are_audited(shared: RunningService) -> None:
    """R40: with actor, address and outcome; a failed log-in has the account's id."""
    admin, ana = await shared.signed_in(Role.ADMIN), await shared.signed_in()
    wrong = pb.LoginRequest(identifier=ana.user.username, password="Wrong7horse")
    error = await expect_rpc_error(shared.auth.Login(wrong))
    update = user_pb2.UpdateUserRequest(
        user=user_pb2.User(id=ana.user.id, role=user_pb2.ROLE_TEACHER)
    )
    await expect_rpc_error(shared.users.UpdateUser(update, metadata=ana.metadata))
    await shared.users.UpdateUser(update, metadata=admin.metadata)
    own, by_admin = f"user:{ana.user.id}", f"user:{admin.user.id}"
    assert await events(shared, admin, ana.user.id) == [
        ("user.created", "anonymous", "OK", "127.0.0.1"),
        ("session.opened", own, "OK", "127.0.0.1"),
        ("session.opened", "anonymous", "INVALID_CREDENTIALS", "127.0.0.1"),
        ("user.updated", by_admin, "OK", "127.0.0.1"),
    ]
    request = pb.ListAuditEventsRequest(user_id=ana.user.id)
    listed = await shared.auth.ListAuditEvents(request, metadata=admin.metadata)
    assert error.request_id in {event.request_id for event in listed.items}


async def test_pages_contain_every_event_once(shared: RunningService) -> None:
    """The newest first; a page token is bound to the filter."""
    admin, ana = await shared.signed_in(Role.ADMIN), await shared.signed_in()
    for _ in range(3):
        await shared.log_in(ana.user.username)
    request = pb.ListAuditEventsRequest(
        user_id=ana.user.id, event="session.opened", page_size=3
    )
    first = await shared.auth.ListAuditEvents(request, metadata=admin.metadata)
    request.page_token = first.next_page_token
    second = await shared.auth.ListAuditEvents(request, metadata=admin.metadata)
    ids = [event.id for event in (*first.items, *second.items)]
    assert len(ids) == 4
    assert ids == sorted(set(ids), reverse=True)
    assert (first.has_next, second.has_next) == (True, False)
    request.event = "user.created"
    error = await expect_rpc_error(
        shared.auth.ListAuditEvents(request, metadata=admin.metadata)
    )
    assert error.violations == {("pageToken", "page_token.foreign")}
    later = pb.ListAuditEventsRequest(user_id=ana.user.id)
    later.since.CopyFrom(first.items[0].at)
    since = await shared.auth.ListAuditEvents(later, metadata=admin.metadata)
    assert [event.id for event in since.items] == ids[:1]


async def test_early_refusals_are_not_audited(shared: RunningService) -> None:
    """A flood of bad calls must not become a flood of rows."""
    admin, ana = await shared.signed_in(Role.ADMIN), await shared.signed_in()
    before = await events(shared, admin, ana.user.id)
    update = user_pb2.UpdateUserRequest(user=user_pb2.User(id=ana.user.id))
    await expect_rpc_error(shared.users.UpdateUser(update))
    await expect_rpc_error(shared.users.UpdateUser(update, metadata=ana.metadata))
    assert await events(shared, admin, ana.user.id) == before
