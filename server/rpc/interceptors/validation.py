"""The contract's field rules, by protovalidate; and no NUL in any text (R32)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from protovalidate import Validator
from protovalidate import Violation as Broken

from server.domain.errors import InvalidFields, Violation
from server.rpc.call import Call, Outcome, Proceed

NO_NUL = r"^[^\u0000]*$"  # the same rule, for a document
_validator = Validator()


async def validated(call: Call, proceed: Proceed) -> Outcome:
    """Refuse a request that breaks a rule; every violation is named."""
    check(call.request, call.body)
    return await proceed(call)


def check(request: Message, body: bytes) -> None:
    """Raise InvalidFields with every rule that a request, of these bytes, breaks."""
    violations = broken_rules(request)
    # Postgres takes no NUL in text; a walk is due only where there is a zero byte
    if b"\0" in body:
        violations += _nuls(request, "")
    if violations:
        raise InvalidFields(violations)


def broken_rules(message: Message) -> list[Violation]:
    """Give the rules that a message breaks, by the paths of its fields."""
    return [
        _violation(broken, cast(Descriptor, message.DESCRIPTOR))
        for broken in _validator.collect_violations(message)
    ]


def _violation(broken: Broken, request: Descriptor) -> Violation:
    proto = broken.proto
    path = ""
    where: Descriptor | None = request
    for element in proto.field.elements if proto.field else ():
        field = where.fields_by_name[element.field_name] if where else None
        name = field.json_name if field else element.field_name
        path += f".{name}" if path else name
        if element.subscript is not None:
            path += f"[{element.subscript.value}]"
        where = field.message_type if field else None
    name, _, _ = proto.rule_id.partition(".")
    if not path and name in request.fields_by_name:
        path = request.fields_by_name[name].json_name  # a rule of the whole message
    return Violation(path, proto.message, proto.rule_id)


def _nuls(message: Message, prefix: str) -> Iterator[Violation]:
    for field, value in message.ListFields():
        path = f"{prefix}{field.json_name}"
        items = list(value) if field.is_repeated else [value]
        if field.type == FieldDescriptor.TYPE_STRING:
            if any("\0" in item for item in items):
                yield Violation(path, "must not hold a NUL character", "string.no_nul")
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for item in items:
                if isinstance(item, Message):
                    yield from _nuls(item, f"{path}.")
