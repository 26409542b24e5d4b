"""Unexpected exceptions: the cause is in the log, never in a response."""

import grpc
import sqlalchemy as sa
import structlog

from blatam.user.v1 import user_pb2
from server.observability.logging import add_context
from server.store.connections.connect import Database
from tests.running import PASSWORD, running
from tests.status import expect_rpc_error


async def test_unexpected_exception_is_not_shown_to_the_caller(
    database_url: str, redis_url: str
) -> None:
    """R38, R39: "internal error" with a request id; no row values in the log."""
    database = Database(database_url)
    async with running(database_url, redis_url) as service:
        async with database.transaction() as connection:
            await connection.execute(
                sa.text("alter table users rename email_verified to gone")
            )
        request = user_pb2.CreateUserRequest(
            email="canary@example.com", username="canary", password=PASSWORD
        )
        with structlog.testing.capture_logs([add_context]) as lines:
            refused = await expect_rpc_error(service.users.CreateUser(request))
            body = {"email": request.email, "username": "canary", "password": PASSWORD}
            response = await service.http.post("/api/v1/users", json=body)
    await database.close()
    assert (refused.code, refused.message) == (
        grpc.StatusCode.INTERNAL,
        "internal error",
    )
    error = response.json()
    assert (response.status_code, error["error"]) == (500, "internal error")
    causes = {
        line["request_id"]: repr(line["exc_info"])
        for line in lines
        if line["event"] == "unexpected"
    }
    assert set(causes) == {refused.request_id, error["requestId"]}
    assert all("email_verified" in cause for cause in causes.values())
    assert "canary" not in repr(lines)
    assert "argon2" not in repr(lines)
    assert "email_verified" not in response.text
