"""Invalid input over REST: 400 with field and rule, in the same words as gRPC."""

from typing import Any

import orjson
import pytest
from google.rpc import error_details_pb2

from blatam.user.v1 import user_pb2
from tests.running import PASSWORD, RunningService, running
from tests.status import expect_rpc_error

VALID = {"email": "ana@example.com", "username": "ana", "password": PASSWORD}
JSON = {"content-type": "application/json"}


def violations(body: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [
        (violation["field"], violation.get("reason", ""), violation["description"])
        for detail in body["details"]
        if detail["@type"].endswith("BadRequest")
        for violation in detail["fieldViolations"]
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {"email": "ana"},
        {"password": "Ab1"},
        {"password": "bluehorse"},
        {"username": "a" * 51},
        {"username": "ana\0"},
        {"password": "Blue7\0horse"},
    ],
)
async def test_violations_are_the_same_on_both_transports(
    shared: RunningService, fields: dict[str, str]
) -> None:
    """R32: the same fields, rules and descriptions."""
    request = user_pb2.CreateUserRequest(**VALID | fields)
    refused = await expect_rpc_error(shared.users.CreateUser(request))
    expected = refused.detail(error_details_pb2.BadRequest).field_violations
    response = await shared.http.post("/api/v1/users", json=VALID | fields)
    assert response.status_code == 400
    body = response.json()
    assert violations(body) == [(v.field, v.reason, v.description) for v in expected]
    assert (body["error"], body["errorCode"]) == (refused.message, "INVALID_FIELDS")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (orjson.dumps(VALID | {"role": "ROLE_ADMIN"}), "role"),
        (b'{"email": "a@x.co", "email": "b@x.co"}', "email"),
        (b'{"requestId": "1", "request_id": "2"}', "requestId"),
        (orjson.dumps(VALID | {"username": 5}), "username"),
        (orjson.dumps(VALID | {"username": ["ana"]}), "username"),
        (b'{"email": ', None),
        (b"[1]", None),
        (b"null", None),
        (b'{"username": "\\ud800"}', None),
        (b'{"username": "\xff"}', None),
        (b'{"username": NaN}', None),
        (b"[" * 100_000, None),
        (b"", None),
    ],
)
async def test_invalid_body_is_a_400_that_names_the_field(
    shared: RunningService, body: bytes, field: str | None
) -> None:
    """R32: never 5xx; without a field if none is at fault."""
    response = await shared.http.post("/api/v1/users", content=body, headers=JSON)
    assert response.status_code == 400
    error = response.json()
    assert error["status"] == "INVALID_ARGUMENT"
    if field:
        assert [name for name, _, _ in violations(error)] == [field]
        assert field in error["error"]


async def test_oversized_body_is_a_413(shared: RunningService) -> None:
    """R34: before the body is read completely."""
    body = orjson.dumps(VALID | {"username": "a" * 2**21})
    response = await shared.http.post("/api/v1/users", content=body, headers=JSON)
    assert response.status_code == 413


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/api/v1/users/0", "id"),
        ("/api/v1/users/-1", "id"),
        ("/api/v1/users/ana", "id"),
        ("/api/v1/users/9223372036854775808", "id"),
        ("/api/v1/users/1e3x", "id"),
        ("/api/v1/users?page=0", "page"),
        ("/api/v1/users?page=x", "page"),
        ("/api/v1/users?page=99999999999", "page"),
        ("/api/v1/users?page_size=101", "pageSize"),
        ("/api/v1/users?nothing=1", "nothing"),
        ("/api/v1/users?page=1&page=2", "page"),
        ("/api/v1/users?role=ROLE_KING", "role"),
        ("/api/v1/users?sort_by=password", "sortBy"),
        ("/api/v1/users?username_prefix=%00", "usernamePrefix"),
    ],
)
async def test_invalid_path_or_query_is_a_400_that_names_the_field(
    shared: RunningService, path: str, field: str
) -> None:
    ana = await shared.signed_in()
    response = await shared.http.get(path, headers=ana.headers)
    assert response.status_code == 400
    assert violations(response.json())[0][0] == field


async def test_unknown_path_is_404_and_unknown_method_405(
    shared: RunningService,
) -> None:
    """405 comes with Allow."""
    assert (await shared.http.get("/api/v1/nothing")).status_code == 404
    response = await shared.http.patch("/api/v1/users", json={})
    assert response.status_code == 405
    assert {"GET", "POST"} <= set(response.headers["allow"].replace(" ", "").split(","))


async def test_missing_token_is_a_401_with_a_challenge(shared: RunningService) -> None:
    response = await shared.http.get("/api/v1/users/999999")
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer")


async def test_rate_limit_is_a_429_with_retry_after(
    database_url: str, redis_url: str
) -> None:
    """The sixth log-in of a minute is refused."""
    async with running(database_url, redis_url, rate_limits={}) as service:
        # The first call after the start may be too late for Redis; it would be counted
        # in the process only. This one has a limit of its own.
        await service.http.post(
            "/api/v1/auth/request-password-reset", json={"email": "ana@example.com"}
        )
        for _ in range(6):
            response = await service.http.post(
                "/api/v1/auth/login", json={"identifier": "ana", "password": "Wrong7"}
            )
        assert response.status_code == 429
        assert 0 < int(response.headers["retry-after"]) <= 60
        assert response.json()["errorCode"] == "RATE_LIMITED"
