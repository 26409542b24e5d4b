"""Every field of every request at its extremes: a new RPC is covered unasked."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from server.domain.accounts.users import Role
from server.rpc import contract
from server.rpc.call import Method
from tests.running import Running, SignedIn

# one has nothing but a switch, which would retire the keys of all other tests
SPARED = "blatam.auth.v1.AuthService/RotateSigningKey"
METHODS = {m.name: m for m in contract.methods() if m.name != SPARED}
FAULTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
SECONDS = 5.0
SECONDS_OF_A_STREAM = 0.05  # some have no end of their own
WHOLE = (0, 1, -1, 2**31 - 1, -(2**31))
LONG = (*WHOLE, 2**63 - 1, -(2**63))
REAL = (0.0, -0.0, 1e308, 5e-324, float("nan"), float("inf"), float("-inf"))
TEXT = (
    "",
    " ",
    "\0",
    "%",
    "' or 1=1 --",
    "\r\nBcc: eve@example.com",
    "\u0130" * 255,  # folds to twice its length
    "\ufffe\uffff\U0010ffff",
    "e\u0301\u202e" * 40,
    "a" * 100_000,
    "0" * 32,
    "ana@example.com",
    "00000000-0000-0000-0000-000000000000",
)
MOMENTS = (0, -1, 2**63 - 1, -(2**63), 253402300799, 253402300800, -62135596801)
VALUES: dict[int, tuple[Any, ...]] = {
    FieldDescriptor.TYPE_INT32: WHOLE,
    FieldDescriptor.TYPE_INT64: LONG,
    FieldDescriptor.TYPE_DOUBLE: REAL,
    FieldDescriptor.TYPE_BOOL: (True, False),
    FieldDescriptor.TYPE_ENUM: WHOLE,
    FieldDescriptor.TYPE_STRING: TEXT,
    FieldDescriptor.TYPE_BYTES: (b"", b"\0", b"\xff" * 1000),
}


def hostile(kind: Any, depth: int = 0) -> Iterator[Message]:
    """Give messages with one field each at an extreme, the others plausible."""
    if kind.full_name == "google.protobuf.Timestamp":
        for seconds in MOMENTS:
            yield GetMessageClass(kind)(seconds=seconds)
            yield GetMessageClass(kind)(seconds=0, nanos=-1)
        return
    for field in kind.fields:
        for value in extremes(field, depth):
            message = plausible(kind)
            put(message, field, value)
            yield message


def extremes(field: FieldDescriptor, depth: int) -> Iterator[Any]:
    if field.message_type is None:
        yield from VALUES[field.type]
    elif depth < 3:
        yield from hostile(field.message_type, depth + 1)


def put(message: Message, field: FieldDescriptor, value: Any) -> None:
    if field.is_repeated:
        many = getattr(message, field.name)
        del many[:]
        many.extend([value, value])
    elif isinstance(value, Message):
        getattr(message, field.name).CopyFrom(value)
    else:
        setattr(message, field.name, value)


CPP_TYPES = {int: FieldDescriptor.CPPTYPE_INT64, str: FieldDescriptor.CPPTYPE_STRING}
NAMED: dict[str, Any] = {
    "id": 2**62,  # nobody's
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
    """Give a message that passes most rules, so that each fault is met alone."""
    message: Message = GetMessageClass(kind)()
    for field in kind.fields:
        if field.message_type is None and not field.is_repeated:
            named = field.name in NAMED
            if named and field.cpp_type == CPP_TYPES[type(NAMED[field.name])]:
                setattr(message, field.name, NAMED[field.name])
        elif field.message_type and field.name in ("user", "post", "category"):
            getattr(message, field.name).CopyFrom(plausible(field.message_type))
    return message


async def sent(
    service: Running, method: Method, request: Message, who: SignedIn
) -> grpc.StatusCode:
    body = request.SerializeToString()
    try:
        if method.streams:
            stream: Any = service.channel.unary_stream(method.path)
            call = stream(body, metadata=who.metadata, timeout=SECONDS_OF_A_STREAM)
            await call.read()
        else:
            unary: Any = service.channel.unary_unary(method.path)
            await unary(body, metadata=who.metadata, timeout=SECONDS)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest_asyncio.fixture(scope="module")
async def root(shared: Running) -> SignedIn:
    return await shared.signed_in(Role.ADMIN)


@pytest.mark.parametrize("name", METHODS)
async def test_no_field_breaks_anything(
    shared: Running, root: SignedIn, name: str
) -> None:
    """R32: whatever an admin sends is done or refused, never "internal error"."""
    method = METHODS[name]
    who = await shared.signed_in() if method.policy.user_required else root
    for request in hostile(method.request_type.DESCRIPTOR):
        code = await sent(shared, method, request, who)
        assert code not in FAULTS, request
        if not method.streams:
            assert code is not grpc.StatusCode.DEADLINE_EXCEEDED, request
