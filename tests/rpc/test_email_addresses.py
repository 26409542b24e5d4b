"""E-mail addresses: every address that the contract accepts can be mailed."""

from typing import Any

import pytest
import sqlalchemy as sa
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from blatam.auth.v1 import auth_pb2
from blatam.user.v1 import user_pb2 as pb
from buf.validate import validate_pb2
from server.domain.accounts.users import Role
from server.domain.errors import InvalidFields
from server.rpc.accounts.users import check_sign_up
from server.store.connections.connect import Database
from tests.running import PASSWORD, RunningService
from tests.status import expect_rpc_error

REFUSED = [
    ("a..b@example.com", "email.form"),
    (".a@example.com", "email.form"),
    ("a.@example.com", "email.form"),
    ("a@x..com", "email.form"),
    ("a@.x.com", "email.form"),
    ("a@-x.com", "email.form"),
    ("a@x-.com", "email.form"),
    (f"a@{'x' * 64}.com", "email.form"),
    ("a@x\u0665.com", "email.form"),
    (f"{'a' * 65}@x.com", "email.local_part"),
]
EMAIL_FIELDS: list[tuple[Descriptor, str]] = [
    (pb.User.DESCRIPTOR, "email"),
    (pb.CreateUserRequest.DESCRIPTOR, "email"),
    (pb.NewUser.DESCRIPTOR, "email"),
    (auth_pb2.ChangeEmailRequest.DESCRIPTOR, "new_email"),
]


def rules(field: FieldDescriptor) -> list[validate_pb2.Rule]:
    return list(field.GetOptions().Extensions[validate_pb2.field].cel)


def test_email_rules_are_the_same_in_every_message() -> None:
    """One rule for sign-up, import, administration and change of address."""
    first, *others = [
        rules(message.fields_by_name[name]) for message, name in EMAIL_FIELDS
    ]
    assert [rule.id for rule in first] == ["email.form", "email.local_part"]
    assert all(other == first for other in others)


@pytest.mark.parametrize(("email", "rule"), REFUSED)
async def test_email_that_cannot_be_mailed_is_refused(
    shared: RunningService, email: str, rule: str
) -> None:
    """Sign-up, change, administration, import and command line, both transports."""
    root = await shared.signed_in(Role.ADMIN)
    sign_up = pb.CreateUserRequest(email=email, username="unmailed", password=PASSWORD)
    change = auth_pb2.ChangeEmailRequest(new_email=email, current_password=PASSWORD)
    edit = pb.UpdateUserRequest(user=pb.User(id=root.user.id, email=email))
    calls: list[tuple[Any, str]] = [
        (shared.users.CreateUser(sign_up), "email"),
        (shared.auth.ChangeEmail(change, metadata=root.metadata), "newEmail"),
        (shared.users.UpdateUser(edit, metadata=root.metadata), "user.email"),
    ]
    for call, field in calls:
        assert (await expect_rpc_error(call)).violations == {(field, rule)}
    with pytest.raises(InvalidFields) as caught:
        check_sign_up(email, "unmailed", PASSWORD)
    assert [violation.rule for violation in caught.value.violations] == [rule]
    body = {"email": email, "username": "unmailed", "password": PASSWORD}
    answer = await shared.http.post("/api/v1/users", json=body)
    assert (answer.status_code, rule in answer.text) == (400, True)
    answer = await shared.http.post(
        "/api/v1/users:batchCreate", json={"users": [body]}, headers=root.headers
    )
    (outcome,) = answer.json()["outcomes"]
    assert outcome["error"]["fieldViolations"][0]["rule"] == rule


async def test_email_of_an_older_account_still_logs_in(
    service: RunningService, database_url: str
) -> None:
    """An address that was accepted before still identifies its account."""
    user = await service.sign_up()
    database = Database(database_url)
    update = sa.text("update users set email = 'a..b@example.com' where id = :id")
    async with database.transaction() as connection:
        await connection.execute(update, {"id": user.id})
    await database.close()
    assert await service.log_in("A..b@example.com")
    body = {"identifier": "a..b@example.com", "password": PASSWORD}
    answer = await service.http.post("/api/v1/auth/login", json=body)
    assert answer.status_code == 200
