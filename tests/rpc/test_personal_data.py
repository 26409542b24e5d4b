"""EraseUser and ExportUser: what is held about one person, given and erased."""

from typing import Any
from uuid import uuid4

import pytest
import redis
import sqlalchemy as sa

from blatam.auth.v1 import auth_pb2
from blatam.user.v1 import user_pb2 as pb
from server.domain.accounts.users import Role
from server.domain.edits import json_name
from server.store.connect import Database
from server.store.tables import metadata, users
from tests.running import PASSWORD, Running, SignedIn
from tests.status import refusal

DEVICE, ADDRESS = "anas-telephone/7.1", "192.0.2.7"

# Tables that do not go with the account by themselves, and why that is right. What
# they keep is held to the test below.
KEPT = {
    "outbox": "its events name the id alone; mails are deleted",
    "audit_events": "an event keeps the id, without the address",
}


def names_users(table: sa.Table) -> bool:
    keys = [key.column.table for key in table.foreign_keys]
    return table is users or "user_id" in table.columns or users in keys


async def life(service: Running) -> SignedIn:
    """Give somebody who has left traces wherever one can."""
    request = pb.CreateUserRequest(
        email="anastasia@example.com",
        username="anastasia",
        password=PASSWORD,
        request_id=str(uuid4()),
    )
    user = (await service.users.CreateUser(request)).user
    login = {"identifier": "anastasia", "password": PASSWORD}
    answer = await service.http.post(
        "/api/v1/auth/login", json=login, headers={"user-agent": DEVICE}
    )
    tokens = auth_pb2.TokenPair(access_token=answer.json()["accessToken"])
    ana = SignedIn(user, tokens)
    wrong = {"identifier": "Anastasia@example.com", "password": "Wrong7horse"}
    await service.http.post("/api/v1/auth/login", json=wrong)
    edit = pb.UpdateUserRequest(
        user=pb.User(id=user.id, username="Anastasia_L"), request_id=str(uuid4())
    )
    await service.users.UpdateUser(edit, metadata=ana.metadata)
    reset = auth_pb2.RequestPasswordResetRequest(identifier="anastasia_l")
    await service.auth.RequestPasswordReset(reset)
    verify = auth_pb2.RequestEmailVerificationRequest()
    await service.auth.RequestEmailVerification(verify, metadata=ana.metadata)
    return ana


async def dump(database_url: str) -> dict[str, str]:
    """Give each table's rows as text."""
    database, found = Database(database_url), {}
    async with database.reading() as connection:
        for table in metadata.sorted_tables:
            rows = (await connection.execute(sa.select(table))).all()
            found[table.name] = "\n".join(map(repr, rows))
    await database.close()
    return found


def erase(user_id: int, password: str = "") -> pb.EraseUserRequest:
    return pb.EraseUserRequest(id=user_id, current_password=password)


def traces(dumped: dict[str, str]) -> set[str]:
    """Give the tables that hold something of hers beside the id."""
    hers = ("anastasia", DEVICE, ADDRESS)
    return {
        name
        for name, rows in dumped.items()
        if any(mark in rows.lower() for mark in hers)
    }


async def test_erasing_leaves_the_id_alone(
    service: Running, database_url: str, redis_url: str
) -> None:
    """Gone from every table and from Redis; the audit log keeps the id, no more."""
    ana = await life(service)
    before = traces(await dump(database_url))
    assert {"users", "sessions", "audit_events", "request_answers"} <= before
    await service.users.EraseUser(erase(ana.user.id, PASSWORD), metadata=ana.metadata)
    after = await dump(database_url)
    assert traces(after) == set()
    assert f"'user:{ana.user.id}', {ana.user.id}, '', 'OK'" in after["audit_events"]
    assert "user.erased" in after["audit_events"]
    with redis.Redis.from_url(redis_url) as client:
        for key in client.scan_iter("*user*"):
            if client.type(key) == b"hash":
                assert b"anastasia" not in b"".join(client.hvals(key)).lower()
    me = pb.GetCurrentUserRequest()
    refused = await refusal(service.users.GetCurrentUser(me, metadata=ana.metadata))
    assert refused.reason == "TOKEN_INVALID"


async def test_name_and_address_are_free_and_the_id_is_not(service: Running) -> None:
    """R30: who comes next has another id, and none of the old one's rights."""
    ana = await life(service)
    await service.users.EraseUser(erase(ana.user.id, PASSWORD), metadata=ana.metadata)
    again = pb.CreateUserRequest(
        email="anastasia@example.com", username="anastasia_l", password=PASSWORD
    )
    made = (await service.users.CreateUser(again)).user
    assert made.id > ana.user.id
    root = await service.signed_in(Role.ADMIN)
    call = service.users.GetUser(
        pb.GetUserRequest(id=ana.user.id), metadata=root.metadata
    )
    assert (await refusal(call)).reason == "USER_NOT_FOUND"


async def test_who_erases_themself_proves_that_it_is_they(shared: Running) -> None:
    """A token alone does not suffice (ASVS 7.5.3); an admin needs none for others."""
    ana, root = await shared.signed_in(), await shared.signed_in(Role.ADMIN)
    for who in (ana, root):
        call = shared.users.EraseUser(erase(who.user.id), metadata=who.metadata)
        assert (await refusal(call)).violations == {("currentPassword", "required")}
    wrong = shared.users.EraseUser(
        erase(ana.user.id, "Wrong7horse"), metadata=ana.metadata
    )
    assert (await refusal(wrong)).reason == "INVALID_CREDENTIALS"
    answer = await shared.http.post(
        f"/api/v1/users/{ana.user.id}:erase", json={}, headers=root.headers
    )
    assert answer.status_code == 204
    nobody = shared.users.EraseUser(erase(ana.user.id), metadata=root.metadata)
    assert (await refusal(nobody)).reason == "USER_NOT_FOUND"


async def test_the_last_admin_stays(service: Running) -> None:
    root = await service.signed_in(Role.ADMIN)
    call = service.users.EraseUser(
        erase(root.user.id, PASSWORD), metadata=root.metadata
    )
    assert (await refusal(call)).reason == "LAST_ADMIN"
    await service.signed_in(Role.ADMIN)
    mine = erase(root.user.id, PASSWORD)
    await service.users.EraseUser(mine, metadata=root.metadata)


async def test_who_is_deleted_already_can_be_erased(shared: Running) -> None:
    """Without waiting for the worker."""
    ana, root = await shared.signed_in(), await shared.signed_in(Role.ADMIN)
    gone = pb.DeleteUserRequest(id=ana.user.id)
    await shared.users.DeleteUser(gone, metadata=ana.metadata)
    await shared.users.EraseUser(erase(ana.user.id), metadata=root.metadata)
    back = pb.UndeleteUserRequest(id=ana.user.id)
    call = shared.users.UndeleteUser(back, metadata=root.metadata)
    assert (await refusal(call)).reason == "USER_NOT_FOUND"


async def test_everything_held_is_given_and_no_secret(service: Running) -> None:
    """GDPR art. 15: one document, a table at a time."""
    ana = await life(service)
    answer = await service.http.get(
        f"/api/v1/users/{ana.user.id}:export", headers=ana.headers
    )
    assert answer.status_code == 200
    held = answer.json()
    (account,) = held["users"]
    assert account["email"] == "anastasia@example.com"
    (session,) = held["sessions"]
    assert (session["device"], session["address"]) == (DEVICE, ADDRESS)
    events = {event["event"] for event in held["auditEvents"]}
    assert {"user.created", "session.opened", "user.updated"} <= events
    kinds = {entry["kind"] for entry in held["outbox"]}
    assert {"user.created", "user.updated"} <= kinds
    assert len(held["requestAnswers"]) == 2
    for secret in ("argon2", "hash", "nonce", "fingerprint"):
        assert secret not in answer.text
    bea = await service.signed_in()
    call = service.users.ExportUser(
        pb.ExportUserRequest(id=ana.user.id), metadata=bea.metadata
    )
    assert (await refusal(call)).reason == "ACCESS_DENIED"
    root = await service.signed_in(Role.ADMIN)
    nobody = service.users.ExportUser(
        pb.ExportUserRequest(id=999), metadata=root.metadata
    )
    assert (await refusal(nobody)).reason == "USER_NOT_FOUND"


async def test_every_table_that_names_users_is_exported_and_erased(
    shared: Running,
) -> None:
    """A new table with a `user_id` is covered, or this fails and names it."""
    ana = await shared.signed_in()
    request = pb.ExportUserRequest(id=ana.user.id)
    held: Any = (await shared.users.ExportUser(request, metadata=ana.metadata)).document
    named = {table.name for table in metadata.sorted_tables if names_users(table)}
    assert {json_name(name) for name in named} - set(held) == set(), "not exported"
    cascading = {
        table.name
        for table in metadata.sorted_tables
        for key in table.foreign_keys
        if key.column.table is users and key.ondelete == "CASCADE"
    }
    assert named - cascading - {"users"} == set(KEPT), "not erased, or not said why"


@pytest.mark.parametrize("table", metadata.sorted_tables, ids=lambda table: table.name)
def test_who_is_named_goes_with_the_account(table: sa.Table) -> None:
    """Every foreign key to an account cascades: nothing keeps one from going."""
    for key in table.foreign_keys:
        if key.column.table is users:
            assert key.ondelete == "CASCADE"
