"""Test clients with one interface, over REST and over gRPC."""

import re
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import httpx
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2

from server.rpc import contract


@dataclass(frozen=True, slots=True)
class Answer:
    """The response of either transport: a status name, a reason and the JSON body."""

    status: str
    reason: str = ""
    body: Any = None


class Client(Protocol):
    """A client of either transport."""

    async def call(self, name: str, token: str = "", /, **fields: Any) -> Answer: ...


class Listening(Protocol):
    """A service that is reached over both transports."""

    @property
    def channel(self) -> grpc.aio.Channel: ...

    @property
    def http(self) -> httpx.AsyncClient: ...


# Written out and not read from the contract: the paths that web clients use.
PATHS: dict[str, tuple[str, str]] = {
    "CreateUser": ("POST", "/api/v1/users"),
    "GetUser": ("GET", "/api/v1/users/{id}"),
    "GetCurrentUser": ("GET", "/api/v1/users/me"),
    "ListUsers": ("GET", "/api/v1/users"),
    "DeleteUser": ("DELETE", "/api/v1/users/{id}"),
    "Login": ("POST", "/api/v1/auth/login"),
    "RefreshToken": ("POST", "/api/v1/auth/refresh"),
    "Logout": ("POST", "/api/v1/auth/logout"),
    "CreateUserProfile": ("POST", "/api/v1/user-profiles"),
    "GetUserProfile": ("GET", "/api/v1/user-profiles/{user_id}"),
    "UpdateUserProfile": ("PATCH", "/api/v1/user-profiles/{user_id}"),
    "GetUserSettings": ("GET", "/api/v1/user-settings"),
    "UpdateUserSettings": ("PUT", "/api/v1/user-settings"),
    "FollowUser": ("PUT", "/api/v1/users/{id}/follow"),
    "UnfollowUser": ("DELETE", "/api/v1/users/{id}/follow"),
    "ListFollowers": ("GET", "/api/v1/users/{id}/followers"),
    "ListFollowing": ("GET", "/api/v1/users/{id}/following"),
    "GetUserOverview": ("GET", "/api/v1/users/{id}/overview"),
    "GetUserScore": ("GET", "/api/v1/users/{id}/score"),
    "CreatePost": ("POST", "/api/v1/posts"),
    "GetPost": ("GET", "/api/v1/posts/{id}"),
    "UpdatePost": ("PATCH", "/api/v1/posts/{id}"),
    "DeletePost": ("DELETE", "/api/v1/posts/{id}"),
    "ListPosts": ("GET", "/api/v1/posts"),
    "CreateCategory": ("POST", "/api/v1/categories"),
    "ListCategories": ("GET", "/api/v1/categories"),
    "UpdateCategory": ("PATCH", "/api/v1/categories/{id}"),
    "DeleteCategory": ("DELETE", "/api/v1/categories/{id}"),
}
# REST sends this field of the response, or of the request, as the whole body.
UNWRAPPED = {"CreateUser": "user", "GetUser": "user", "GetCurrentUser": "user",
             "Login": "tokens", "RefreshToken": "tokens",
             "CreateUserProfile": "profile", "GetUserProfile": "profile",
             "UpdateUserProfile": "profile", "GetUserSettings": "settings",
             "UpdateUserSettings": "settings", "CreatePost": "post",
             "GetPost": "post", "UpdatePost": "post", "CreateCategory": "category",
             "UpdateCategory": "category"}  # fmt: skip
WRAPPED = {"UpdateUserProfile": "profile", "UpdateUserSettings": "settings",
           "UpdatePost": "post", "UpdateCategory": "category"}  # fmt: skip
HTTP = {"ALREADY_EXISTS": 409, "NOT_FOUND": 404, "UNAUTHENTICATED": 401,
        "INVALID_ARGUMENT": 400, "FAILED_PRECONDITION": 400,
        "PERMISSION_DENIED": 403, "ABORTED": 409,
        "RESOURCE_EXHAUSTED": 429, "UNAVAILABLE": 503}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rest:
    """A client over REST."""

    service: Listening

    async def call(self, name: str, token: str = "", /, **fields: Any) -> Answer:
        method, path = PATHS[name]
        path_fields = re.findall(r"\{(\w+)\}", path)
        path = path.format(**fields)
        others = {key: value for key, value in fields.items() if key not in path_fields}
        has_query = method in ("GET", "DELETE")
        response = await self.service.http.request(
            method,
            path,
            headers={"authorization": f"Bearer {token}"} if token else {},
            params=others if has_query else None,
            json=others if not has_query else None,
        )
        body = response.json() if response.content else {}
        if response.is_success:
            expected = 201 if name.startswith("Create") else 200 if body else 204
            assert response.status_code == expected
            return Answer("OK", body=body)
        assert response.status_code == HTTP[body["status"]]
        assert body["requestId"] == response.headers["x-request-id"]
        return Answer(body["status"], body["errorCode"], body)


@dataclass(frozen=True, slots=True)
class Grpc:
    """A client over gRPC."""

    service: Listening

    async def call(self, name: str, token: str = "", /, **fields: Any) -> Answer:
        fields = {WRAPPED[name]: fields} if name in WRAPPED else fields
        path, request, reply_type = _rpc(name)
        ParseDict(_nested(fields), request)
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        send: Any = self.service.channel.unary_unary(path)
        try:
            raw = await send(request.SerializeToString(), metadata=metadata)
        except grpc.aio.AioRpcError as error:
            trailers = dict(error.trailing_metadata() or ())
            status = bytes(trailers["grpc-status-details-bin"])
            info = error_details_pb2.ErrorInfo()
            status_pb2.Status.FromString(status).details[0].Unpack(info)
            return Answer(error.code().name, info.reason)
        reply: Any = reply_type.FromString(raw)
        if name in UNWRAPPED:
            reply = getattr(reply, UNWRAPPED[name])
        body = MessageToDict(reply, always_print_fields_with_no_presence=True)
        return Answer("OK", body=body)


def _rpc(name: str) -> tuple[str, Message, type[Message]]:
    """Return an RPC's path, an empty request and the type of its response."""
    service = next(s for s in contract.SERVICES if name in s.methods_by_name)
    method = service.methods_by_name[name]
    request: Message = GetMessageClass(method.input_type)()
    return f"/{service.full_name}/{name}", request, GetMessageClass(method.output_type)


def _nested(fields: dict[str, Any]) -> dict[str, Any]:
    """Return query names such as "weights.posts" as nested dictionaries."""
    nested: dict[str, Any] = {}
    for name, value in fields.items():
        outer, _, inner = name.partition(".")
        if inner:
            nested.setdefault(outer, {})[inner] = value
        else:
            nested[outer] = value
    return nested
