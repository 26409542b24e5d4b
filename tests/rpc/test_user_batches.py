"""BatchCreateUsers: many accounts in one call, each with its own outcome."""

import asyncio
from typing import Any
from uuid import uuid4

import grpc
import sqlalchemy as sa
from passlib.hash import argon2, bcrypt

from blatam.auth.v1 import auth_pb2
from blatam.user.v1 import user_pb2 as pb
from server.domain.accounts.users import Role
from server.store.connections.connect import Database
from tests.running import PASSWORD, RunningService
from tests.status import expect_rpc_error

_argon2: Any = argon2  # its types are not published
CHEAP = _argon2.using(type="ID", memory_cost=64, time_cost=1, parallelism=1)
HASH = CHEAP.hash(PASSWORD)
BCRYPT_13 = "$2b$13$abcdefghijklmnopqrstuuLW6kvK4iHrCPuAcGm6WGq1p7uU6Ir4m"


def row(name: str, **fields: Any) -> pb.NewUser:
    values = {"email": f"{name}@example.com", "username": name, "password_hash": HASH}
    return pb.NewUser(**values | fields)


def summary(answer: pb.BatchCreateUsersResponse) -> list[str]:
    """Return the username or the error reason of each outcome."""
    assert [o.index for o in answer.outcomes] == list(range(len(answer.outcomes)))
    return [o.user.username or o.error.reason for o in answer.outcomes]


async def test_batch_create_has_an_outcome_for_each_row(shared: RunningService) -> None:
    """An invalid row does not affect the others."""
    root = await shared.signed_in(Role.ADMIN)
    existing = root.user
    request = pb.BatchCreateUsersRequest(
        users=[
            row("batch_a"),
            row("batch_b", email=existing.email.upper()),
            row("batch_c", username=existing.username.upper()),
            row("batch_d", role=pb.ROLE_TEACHER, password_hash="", password=PASSWORD),
            row("batch_e", email="Batch_A@example.com"),
            row("batch_f", username="BATCH_D"),
            row("batch_g", email="batch_g", username="-"),
            row("batch_h", password=PASSWORD),
            row("batch_i", password_hash=""),
            row("batch_j", password_hash="", password="bluehorse"),
            row("batch_k", password_hash="$6$rounds=5000$salt$hash"),
            row("batch_l", password_hash=bcrypt.using(rounds=4).hash("x")[:-1]),
            row("batch_a"),
            row("batch_m"),
        ]
    )
    answer = await shared.users.BatchCreateUsers(request, metadata=root.metadata)
    assert summary(answer) == [
        "batch_a", "EMAIL_TAKEN", "USERNAME_TAKEN", "batch_d", "EMAIL_TAKEN",
        "USERNAME_TAKEN", *["INVALID_FIELDS"] * 6, "EMAIL_TAKEN", "batch_m",
    ]  # fmt: skip
    created = answer.outcomes[3].user
    assert (created.role, created.is_active) == (pb.ROLE_TEACHER, True)
    assert created.email == "batch_d@example.com"
    assert {answer.outcomes[index].error.message for index in (7, 8)} == {
        "invalid request: must have exactly one of password and passwordHash"
    }
    violations = {
        o.index: {(f.field, f.rule) for f in o.error.field_violations}
        for o in answer.outcomes
        if o.error.reason == "INVALID_FIELDS"
    }
    assert violations == {
        6: {
            ("email", "email.form"),
            ("username", "username.form"),
            ("username", "string.min_len"),
        },
        7: {("", "new_user.password")},
        8: {("", "new_user.password")},
        9: {("password", "password.upper"), ("password", "password.digit")},
        10: {("passwordHash", "password_hash.format")},
        11: {("passwordHash", "password_hash.format")},
    }


async def test_imported_hash_is_upgraded_at_the_next_log_in(
    service: RunningService, database_url: str
) -> None:
    """R12: the first log-in replaces it by our own hash."""
    root = await service.signed_in(Role.ADMIN)
    hashes = {"old_a": HASH, "old_b": bcrypt.using(rounds=4).hash(PASSWORD)}
    rows = [row(name, password_hash=hashed) for name, hashed in hashes.items()]
    request = pb.BatchCreateUsersRequest(users=rows)
    await service.users.BatchCreateUsers(request, metadata=root.metadata)
    database = Database(database_url)
    for name, hashed in hashes.items():
        query = sa.text("select hashed_password from users where username = :name")
        async with database.reading() as connection:
            stored = (await connection.execute(query, {"name": name})).scalar_one()
            assert stored == hashed
            await service.log_in(name)
            stored = (await connection.execute(query, {"name": name})).scalar_one()
        assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
        await service.log_in(name)
        wrong = auth_pb2.LoginRequest(identifier=name, password="Wrong7horse")
        await expect_rpc_error(service.auth.Login(wrong))
    await database.close()


async def test_hashes_of_common_cost_are_imported_and_upgraded(
    service: RunningService, database_url: str
) -> None:
    """R12: bcrypt with 12 rounds and argon2id t=3 m=64 MiB p=4, on both transports."""
    root = await service.signed_in(Role.ADMIN)
    strong = _argon2.using(type="ID", memory_cost=65536, time_cost=3, parallelism=4)
    users = [
        {"email": f"{name}@example.com", "username": name, "passwordHash": hashed}
        for name, hashed in (
            ("bcrypt_12", bcrypt.using(rounds=12).hash(PASSWORD)),
            ("bcrypt_13", BCRYPT_13),
        )
    ]
    answer = await service.http.post(
        "/api/v1/users:batchCreate", json={"users": users}, headers=root.headers
    )
    created, invalid = answer.json()["outcomes"]
    assert created["user"]["username"] == "bcrypt_12"
    assert invalid["error"]["fieldViolations"][0]["rule"] == "password_hash.cost"
    rows = [row("argon2_64", password_hash=strong.hash(PASSWORD))]
    request = pb.BatchCreateUsersRequest(users=rows)
    outcomes = await service.users.BatchCreateUsers(request, metadata=root.metadata)
    assert summary(outcomes) == ["argon2_64"]
    database = Database(database_url)
    for name in ("bcrypt_12", "argon2_64"):
        await service.log_in(name)
        query = sa.text("select hashed_password from users where username = :name")
        async with database.reading() as connection:
            stored = (await connection.execute(query, {"name": name})).scalar_one()
        assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    await database.close()


async def test_batch_create_takes_a_thousand_rows(shared: RunningService) -> None:
    """1,000 rows with long names and hashes are within the message limit."""
    root = await shared.signed_in(Role.ADMIN)
    rows = [
        row(f"thousand_{n:04}", email=f"{n:04}{'x' * 60}@{'mail' * 15}.example.com")
        for n in range(1000)
    ]
    request = pb.BatchCreateUsersRequest(users=rows, request_id=str(uuid4()))
    assert request.ByteSize() > 250_000
    answer = await shared.users.BatchCreateUsers(request, metadata=root.metadata)
    assert summary(answer) == [new.username for new in rows]
    again = await shared.users.BatchCreateUsers(request, metadata=root.metadata)
    assert again == answer
    rows.append(row("thousand_and_one"))
    error = await expect_rpc_error(
        shared.users.BatchCreateUsers(
            pb.BatchCreateUsersRequest(users=rows), metadata=root.metadata
        )
    )
    assert error.violations == {("users", "repeated.max_items")}


async def test_batch_create_limits_rows_with_passwords(shared: RunningService) -> None:
    root = await shared.signed_in(Role.ADMIN)
    rows = [row(f"word_{n}", password_hash="", password="x") for n in range(101)]
    request = pb.BatchCreateUsersRequest(users=rows)
    error = await expect_rpc_error(
        shared.users.BatchCreateUsers(request, metadata=root.metadata)
    )
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.violations == {("users", "users.max_passwords")}


async def test_batch_create_over_rest_has_outcomes(shared: RunningService) -> None:
    """201, the outcomes in order, no hash and no password in the answer."""
    root = await shared.signed_in(Role.ADMIN)
    rows = [
        {"email": "r@example.com", "username": "rest_row", "passwordHash": HASH},
        {"email": "r@example.com", "username": "rest_too", "passwordHash": HASH},
    ]
    answer = await shared.http.post(
        "/api/v1/users:batchCreate", json={"users": rows}, headers=root.headers
    )
    assert answer.status_code == 201
    first, second = answer.json()["outcomes"]
    assert (first["index"], first["user"]["username"]) == (0, "rest_row")
    assert second["error"]["reason"] == "EMAIL_TAKEN"
    assert "argon2" not in answer.text


async def test_concurrent_batches_with_the_same_names_do_not_deadlock(
    shared: RunningService,
) -> None:
    """L15: each name is created once, whatever the order of rows; no 5xx."""
    root = await shared.signed_in(Role.ADMIN)
    rows = [row(f"shared_{n}") for n in range(50)]
    orders = [rows, rows[::-1], rows[25:] + rows[:25], rows]
    answers = await asyncio.gather(
        *(
            shared.users.BatchCreateUsers(
                pb.BatchCreateUsersRequest(users=order), metadata=root.metadata
            )
            for order in orders
        )
    )
    created = [
        name for answer in answers for name in summary(answer) if "shared" in name
    ]
    assert sorted(created) == sorted(new.username for new in rows)


async def test_batch_create_refuses_an_empty_batch(shared: RunningService) -> None:
    root = await shared.signed_in(Role.ADMIN)
    request = pb.BatchCreateUsersRequest(users=[])
    error = await expect_rpc_error(
        shared.users.BatchCreateUsers(request, metadata=root.metadata)
    )
    assert error.violations == {("users", "repeated.min_items")}
