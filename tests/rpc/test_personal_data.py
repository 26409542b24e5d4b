"""EraseUser and ExportUser: the personal data of one user, exported and erased."""

from itertools import groupby
from typing import Any
from uuid import uuid4

import orjson
import pytest
import redis
import sqlalchemy as sa

from blatam.auth.v1 import auth_pb2
from blatam.user.v1 import user_pb2 as pb
from server.domain.accounts.users import Role
from server.domain.edits import json_name
from server.store.connections.connect import Database
from server.store.tables import metadata, users
from tests.redis_nodes import primary_urls
from tests.running import PASSWORD, RunningService, SignedInUser
from tests.status import expect_rpc_error

KIB = 1024
MIB = 1024 * KIB
DEVICE, ADDRESS = "anas-telephone/7.1", "192.0.2.7"

# Tables without ON DELETE CASCADE from the account, and why rows may stay.
NOT_CASCADING = {
    "outbox": "events hold the id only; mails are deleted",
    "audit_events": "an event keeps the id, without the address",
}


def names_users(table: sa.Table) -> bool:
    keys = [key.column.table for key in table.foreign_keys]
    return table is users or "user_id" in table.columns or users in keys


async def user_with_traces(service: RunningService) -> SignedInUser:
    """Return a user about whom every table holds something."""
    request = pb.CreateUserRequest(
        email="anastasia@example.com",
        username="anastasia",
        password=PASSWORD,
        request_id=str(uuid4()),
    )
    user = (await service.users.CreateUser(request)).user
    login = {"identifier": "anastasia", "password": PASSWORD}
    response = await service.http.post(
        "/api/v1/auth/login", json=login, headers={"user-agent": DEVICE}
    )
    tokens = auth_pb2.TokenPair(access_token=response.json()["accessToken"])
    ana = SignedInUser(user, tokens)
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
    """Return the rows of each table as text."""
    database, dumped = Database(database_url), {}
    async with database.reading() as connection:
        for table in metadata.sorted_tables:
            rows = (await connection.execute(sa.select(table))).all()
            dumped[table.name] = "\n".join(map(repr, rows))
    await database.close()
    return dumped


def erase_request(user_id: int, password: str = "") -> pb.EraseUserRequest:
    return pb.EraseUserRequest(id=user_id, current_password=password)


def traces(dumped: dict[str, str]) -> set[str]:
    """Return the tables that hold personal data of the user beside the id."""
    marks = ("anastasia", DEVICE, ADDRESS)
    return {
        name
        for name, rows in dumped.items()
        if any(mark in rows.lower() for mark in marks)
    }


@pytest.mark.unsupported_in(
    "no-redis", "valkey-cluster", reason="reads the keys of one Redis"
)
async def test_erasure_leaves_only_the_id(
    service: RunningService, database_url: str, redis_url: str
) -> None:
    """No table and no Redis key holds personal data; the audit log keeps the id."""
    ana = await user_with_traces(service)
    before = traces(await dump(database_url))
    assert {"users", "sessions", "audit_events", "request_answers"} <= before
    await service.users.EraseUser(
        erase_request(ana.user.id, PASSWORD), metadata=ana.metadata
    )
    after = await dump(database_url)
    assert traces(after) == set()
    assert f"'user:{ana.user.id}', {ana.user.id}, '', 'OK'" in after["audit_events"]
    assert "user.erased" in after["audit_events"]
    for url in primary_urls(redis_url):
        with redis.Redis.from_url(url) as client:
            for key in client.scan_iter("*user*"):
                if client.type(key) == b"hash":
                    assert b"anastasia" not in b"".join(client.hvals(key)).lower()
    me = pb.GetCurrentUserRequest()
    error = await expect_rpc_error(
        service.users.GetCurrentUser(me, metadata=ana.metadata)
    )
    assert error.reason == "TOKEN_INVALID"


async def test_erasure_frees_names_but_not_the_id(service: RunningService) -> None:
    """R30: a new account of the same name has another id, and none of its rights."""
    ana = await user_with_traces(service)
    await service.users.EraseUser(
        erase_request(ana.user.id, PASSWORD), metadata=ana.metadata
    )
    same_names = pb.CreateUserRequest(
        email="anastasia@example.com", username="anastasia_l", password=PASSWORD
    )
    created = (await service.users.CreateUser(same_names)).user
    assert created.id > ana.user.id
    root = await service.signed_in(Role.ADMIN)
    call = service.users.GetUser(
        pb.GetUserRequest(id=ana.user.id), metadata=root.metadata
    )
    assert (await expect_rpc_error(call)).reason == "USER_NOT_FOUND"


async def test_erasing_oneself_requires_the_password(shared: RunningService) -> None:
    """An access token does not suffice (ASVS 7.5.3); admins erase others without."""
    ana, root = await shared.signed_in(), await shared.signed_in(Role.ADMIN)
    for user in (ana, root):
        call = shared.users.EraseUser(
            erase_request(user.user.id), metadata=user.metadata
        )
        assert (await expect_rpc_error(call)).violations == {
            ("currentPassword", "required")
        }
    wrong = shared.users.EraseUser(
        erase_request(ana.user.id, "Wrong7horse"), metadata=ana.metadata
    )
    assert (await expect_rpc_error(wrong)).reason == "INVALID_CREDENTIALS"
    response = await shared.http.post(
        f"/api/v1/users/{ana.user.id}:erase", json={}, headers=root.headers
    )
    assert response.status_code == 204
    erased = shared.users.EraseUser(erase_request(ana.user.id), metadata=root.metadata)
    assert (await expect_rpc_error(erased)).reason == "USER_NOT_FOUND"


async def test_erasure_of_last_admin_is_refused(service: RunningService) -> None:
    root = await service.signed_in(Role.ADMIN)
    call = service.users.EraseUser(
        erase_request(root.user.id, PASSWORD), metadata=root.metadata
    )
    assert (await expect_rpc_error(call)).reason == "LAST_ADMIN"
    await service.signed_in(Role.ADMIN)
    request = erase_request(root.user.id, PASSWORD)
    await service.users.EraseUser(request, metadata=root.metadata)


async def test_erasure_accepts_soft_deleted_account(shared: RunningService) -> None:
    """An admin need not wait for the retention period to end."""
    ana, root = await shared.signed_in(), await shared.signed_in(Role.ADMIN)
    deletion = pb.DeleteUserRequest(id=ana.user.id)
    await shared.users.DeleteUser(deletion, metadata=ana.metadata)
    await shared.users.EraseUser(erase_request(ana.user.id), metadata=root.metadata)
    request = pb.UndeleteUserRequest(id=ana.user.id)
    call = shared.users.UndeleteUser(request, metadata=root.metadata)
    assert (await expect_rpc_error(call)).reason == "USER_NOT_FOUND"


async def parts_of(
    service: RunningService, caller: SignedInUser, user_id: int
) -> list[pb.ExportUserResponse]:
    request = pb.ExportUserRequest(id=user_id)
    stream = service.users.ExportUser(request, metadata=caller.metadata)
    return [part async for part in stream]


async def exported(service: RunningService, caller: SignedInUser, user_id: int) -> Any:
    """Return the document that the parts of an export make up."""
    parts = await parts_of(service, caller, user_id)
    return orjson.loads(b"".join(part.body.data for part in parts))


async def test_export_has_everything_but_secrets(service: RunningService) -> None:
    """GDPR art. 15: one JSON document, the same over gRPC and REST."""
    ana = await user_with_traces(service)
    over_grpc = await exported(service, ana, ana.user.id)
    response = await service.http.get(
        f"/api/v1/users/{ana.user.id}:export", headers=ana.headers
    )
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    assert list(document) == list(over_grpc)
    for section in ("users", "sessions", "requestAnswers"):  # the worker writes others
        assert document[section] == over_grpc[section]
    (account,) = document["users"]
    assert account["id"] == str(ana.user.id)
    assert account["email"] == "anastasia@example.com"
    (session,) = document["sessions"]
    assert (session["device"], session["address"]) == (DEVICE, ADDRESS)
    kinds = {entry["kind"] for entry in document["outbox"]}
    assert {"user.created", "user.updated"} <= kinds
    assert len(document["requestAnswers"]) == 2
    for secret in ("argon2", "hash", "nonce", "fingerprint"):
        assert secret not in response.text


async def test_export_lists_audit_events_by_and_about_the_user(
    service: RunningService,
) -> None:
    """Each once; the address of another actor is left out."""
    ana = await user_with_traces(service)
    root = await service.signed_in(Role.ADMIN)
    edit = pb.UpdateUserRequest(user=pb.User(id=ana.user.id, username="renamed"))
    await service.users.UpdateUser(edit, metadata=root.metadata)
    other = await service.sign_up()
    for caller, user_id in ((root, other.id), (root, ana.user.id)):
        await exported(service, caller, user_id)
    events = (await exported(service, ana, ana.user.id))["auditEvents"]
    names = [event["event"] for event in events]
    assert {"user.created", "session.opened", "user.updated"} <= set(names)
    assert len({event["id"] for event in events}) == len(events)
    by_root = [event for event in events if event["actor"] == f"user:{root.user.id}"]
    assert [event["event"] for event in by_root] == ["user.updated", "user.exported"]
    assert {event["address"] for event in by_root} == {""}
    of_root = (await exported(service, root, root.user.id))["auditEvents"]
    assert {event["userId"] for event in of_root} == {
        str(user_id) for user_id in (root.user.id, ana.user.id, other.id)
    }


async def test_export_is_refused_to_others_and_for_unknown_users(
    service: RunningService,
) -> None:
    """Before the first part, with the status of the error on both transports."""
    ana, bea = await service.signed_in(), await service.signed_in()
    root = await service.signed_in(Role.ADMIN)
    for caller, user_id, reason, status in (
        (bea, ana.user.id, "ACCESS_DENIED", 403),
        (root, 999, "USER_NOT_FOUND", 404),
    ):
        error = await expect_rpc_error(parts_of(service, caller, user_id))
        assert error.reason == reason
        response = await service.http.get(
            f"/api/v1/users/{user_id}:export", headers=caller.headers
        )
        assert response.status_code == status
        assert response.json()["errorCode"] == reason


async def test_export_streams_large_account_in_bounded_parts(
    service: RunningService, database_url: str
) -> None:
    """Over gRPC's default limit of 4 MiB in total; each message within 256 KiB."""
    ana = await service.signed_in()
    await write_large_history(database_url, ana.user.id)
    parts = await parts_of(service, ana, ana.user.id)
    assert sum(part.ByteSize() for part in parts) > 8 * MIB
    assert max(part.ByteSize() for part in parts) <= 256 * KIB
    document = orjson.loads(b"".join(part.body.data for part in parts))
    assert [section for section, _ in groupby(part.section for part in parts)] == [
        *document
    ]
    assert len(document["posts"]) == 90
    assert {post["body"] for post in document["posts"]} == {"\u00e9" * 49_999 + "\n"}
    events = [event["id"] for event in document["auditEvents"]]
    assert len(events) == len(set(events)) == 1_502  # and signing up and in
    response = await service.http.get(
        f"/api/v1/users/{ana.user.id}:export", headers=ana.headers
    )
    assert response.json()["posts"] == document["posts"]


async def write_large_history(database_url: str, user_id: int, posts: int = 90) -> None:
    """Write posts of 50,000 characters, and 1,500 audit events."""
    database = Database(database_url)
    for statement in (
        "insert into posts (user_id, title, body, state, created_at, updated_at)"
        " select :user_id, 't', repeat('\u00e9', 49999) || E'\\n', 2, now(), now()"
        f" from generate_series(1, {posts})",
        "insert into audit_events (at, event, actor, user_id, address, outcome,"
        " request_id) select now(), 'session.opened', 'user:' || :user_id,"
        " case when n % 2 = 0 then 0 else :user_id end, '', 'OK', n::text"
        " from generate_series(1, 1500) n",
    ):
        async with database.transaction() as connection:
            await connection.execute(
                sa.text(statement).bindparams(
                    sa.bindparam("user_id", user_id, sa.BigInteger)
                )
            )
    await database.close()


async def test_export_fails_when_account_is_erased_meanwhile(
    service: RunningService, database_url: str
) -> None:
    """What was streamed is no complete document, and the status says so."""
    ana, root = await service.signed_in(), await service.signed_in(Role.ADMIN)
    # 40 MB, more than the connection takes before this client reads on
    await write_large_history(database_url, ana.user.id, posts=400)
    request = pb.ExportUserRequest(id=ana.user.id)
    stream = aiter(service.users.ExportUser(request, metadata=root.metadata))
    parts = [await anext(stream)]
    await service.users.EraseUser(erase_request(ana.user.id), metadata=root.metadata)

    async def read_on() -> None:
        async for part in stream:
            parts.append(part)  # noqa: PERF401 - some arrive before the error

    assert (await expect_rpc_error(read_on())).reason == "USER_NOT_FOUND"
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(b"".join(part.body.data for part in parts))


async def test_every_table_about_users_is_exported_and_erased(
    shared: RunningService,
) -> None:
    """A new table with a `user_id` is covered, or this test names it."""
    ana = await shared.signed_in()
    document = await exported(shared, ana, ana.user.id)
    about_users = {table.name for table in metadata.sorted_tables if names_users(table)}
    not_exported = {json_name(name) for name in about_users} - set(document)
    assert not_exported == set()
    cascading = {
        table.name
        for table in metadata.sorted_tables
        for key in table.foreign_keys
        if key.column.table is users and key.ondelete == "CASCADE"
    }
    assert about_users - cascading - {"users"} == set(NOT_CASCADING)


@pytest.mark.parametrize("table", metadata.sorted_tables, ids=lambda table: table.name)
def test_foreign_keys_to_accounts_cascade(table: sa.Table) -> None:
    """No row can prevent the erasure of an account."""
    for key in table.foreign_keys:
        if key.column.table is users:
            assert key.ondelete == "CASCADE"
