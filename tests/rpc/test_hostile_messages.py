"""Every field of every request at extreme values; new RPCs are included."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.struct_pb2 import Struct

from server.domain.accounts.users import Role
from server.rpc import contract
from server.rpc.call import Method
from tests.running import RunningService, SignedInUser

# Rotating the keys would invalidate the tokens of all other tests.
EXCLUDED = "blatam.auth.v1.AuthService/RotateSigningKey"
METHODS = {m.name: m for m in contract.methods() if m.name != EXCLUDED}
SERVER_ERRORS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
TIMEOUT_SECONDS = 5.0
STREAM_TIMEOUT_SECONDS = 0.05  # some streams never end by themselves
INT32 = (0, 1, -1, 2**31 - 1, -(2**31))
INT64 = (*INT32, 2**63 - 1, -(2**63))
DOUBLES = (0.0, -0.0, 1e308, 5e-324, float("nan"), float("inf"), float("-inf"))
TEXT = (
    "",
    " ",
    "\0",
    "%",
    "' or 1=1 --",
    "\r\nBcc: eve@example.com",
    "\u0130" * 255,  # its lower case is twice as long
    "\ufffe\uffff\U0010ffff",
    "e\u0301\u202e" * 40,
    "a" * 100_000,
    "0" * 32,
    "ana@example.com",
    "00000000-0000-0000-0000-000000000000",
)
TIMESTAMP_SECONDS = (
    0,
    -1,
    2**63 - 1,
    -(2**63),
    253402300799,
    253402300800,
    -62135596801,
)
VALUES: dict[int, tuple[Any, ...]] = {
    FieldDescriptor.TYPE_INT32: INT32,
    FieldDescriptor.TYPE_INT64: INT64,
    FieldDescriptor.TYPE_DOUBLE: DOUBLES,
    FieldDescriptor.TYPE_BOOL: (True, False),
    FieldDescriptor.TYPE_ENUM: INT32,
    FieldDescriptor.TYPE_STRING: TEXT,
    FieldDescriptor.TYPE_BYTES: (b"", b"\0", b"\xff" * 1000),
}


STRUCTS: tuple[dict[str, Any], ...] = (
    {},
    {"": None},
    {"id": "\0", "rawId": "%", "type": [], "response": {}},
    {"id": 1e308, "response": {"clientDataJSON": "a" * 100_000}},
    {"response": {"clientDataJSON": "e30", "authenticatorData": "AA"}},
    {"response": [[[[[[[[[[{}]]]]]]]]]]},
)


def struct_of(values: dict[str, Any]) -> Struct:
    struct = Struct()
    struct.update(values)
    return struct


def hostile_messages(kind: Any, depth: int = 0) -> Iterator[Message]:
    """Return messages with one field at an extreme value and plausible others."""
    if kind.full_name == "google.protobuf.Timestamp":
        for seconds in TIMESTAMP_SECONDS:
            yield GetMessageClass(kind)(seconds=seconds)
            yield GetMessageClass(kind)(seconds=0, nanos=-1)
        return
    if kind.full_name == "google.protobuf.Struct":
        yield from map(struct_of, STRUCTS)
        return
    for field in kind.fields:
        for value in extreme_values(field, depth):
            message = plausible(kind)
            set_field(message, field, value)
            yield message


def extreme_values(field: FieldDescriptor, depth: int) -> Iterator[Any]:
    if field.message_type is None:
        yield from VALUES[field.type]
    elif depth < 3:
        yield from hostile_messages(field.message_type, depth + 1)


def set_field(message: Message, field: FieldDescriptor, value: Any) -> None:
    if field.is_repeated:
        items = getattr(message, field.name)
        del items[:]
        items.extend([value, value])
    elif isinstance(value, Message):
        getattr(message, field.name).CopyFrom(value)
    else:
        setattr(message, field.name, value)


CPP_TYPES = {int: FieldDescriptor.CPPTYPE_INT64, str: FieldDescriptor.CPPTYPE_STRING}
PLAUSIBLE_VALUES: dict[str, Any] = {
    "id": 2**62,  # an id that no row has
    "user_id": 2**62,
    "email": "ana@example.com",
    "new_email": "ana@example.com",
    "username": "ana_ana",
    "username_prefix": "ana",
    "password": "Blue7horse",
    "current_password": "Blue7horse",
    "new_password": "Green8horse",
    "identifier": "ana",
    "token": "x",
    "refresh_token": "x",
    "name": "x",
    "title": "x",
    "body": "x",
    "slug": "x",
    "display_name": "x",
}


def plausible(kind: Any) -> Message:
    """Return a message that breaks few rules, so that one field is tested."""
    message: Message = GetMessageClass(kind)()
    for field in kind.fields:
        if field.message_type is None and not field.is_repeated:
            value = PLAUSIBLE_VALUES.get(field.name)
            if value is not None and field.cpp_type == CPP_TYPES[type(value)]:
                setattr(message, field.name, value)
        elif field.message_type and field.name in ("user", "post", "category"):
            getattr(message, field.name).CopyFrom(plausible(field.message_type))
    return message


async def call(
    service: RunningService, method: Method, request: Message, caller: SignedInUser
) -> grpc.StatusCode:
    body = request.SerializeToString()
    try:
        if method.streams:
            stream: Any = service.channel.unary_stream(method.path)
            messages = stream(
                body, metadata=caller.metadata, timeout=STREAM_TIMEOUT_SECONDS
            )
            await messages.read()
        else:
            unary: Any = service.channel.unary_unary(method.path)
            await unary(body, metadata=caller.metadata, timeout=TIMEOUT_SECONDS)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest_asyncio.fixture(scope="module")
async def admin_user(shared: RunningService) -> SignedInUser:
    return await shared.signed_in(Role.ADMIN)


@pytest.mark.parametrize("name", METHODS)
async def test_extreme_values_are_never_an_internal_error(
    shared: RunningService, admin_user: SignedInUser, name: str
) -> None:
    """R32: whatever an admin sends is executed or refused."""
    method = METHODS[name]
    caller = await shared.signed_in() if method.policy.user_required else admin_user
    for request in hostile_messages(method.request_type.DESCRIPTOR):
        code = await call(shared, method, request, caller)
        assert code not in SERVER_ERRORS, request
        if not method.streams:
            assert code is not grpc.StatusCode.DEADLINE_EXCEEDED, request
