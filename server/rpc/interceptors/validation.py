"""Checks the contract's field rules (protovalidate) and refuses NUL in text (R32)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from protovalidate import Validator
from protovalidate import Violation as RuleViolation

from server.domain.errors import InvalidFields, Violation
from server.rpc.call import Call, CallCoroutine, Proceed

NO_NUL = r"^[^\u0000]*$"  # the same rule for the OpenAPI document
_validator = Validator()


# Not a coroutine of its own: one more per call costs as much as the check.
def validate_requests(call: Call, proceed: Proceed) -> CallCoroutine:
    """Refuse a request that breaks a rule. The error lists every violation."""
    check(call.request, call.body)
    return proceed(call)


def check(request: Message, body: bytes) -> None:
    """Raise InvalidFields with every rule that the request breaks."""
    violations = broken_rules(request)
    # Postgres refuses NUL in text. Only a body with a zero byte can contain one.
    if b"\0" in body:
        violations += _nuls(request, "")
    if violations:
        raise InvalidFields(violations)


def broken_rules(message: Message) -> list[Violation]:
    """Return the rules that a message breaks, with the paths of the fields."""
    return [
        _violation(violation, cast(Descriptor, message.DESCRIPTOR))
        for violation in _validator.collect_violations(message)
    ]


def _violation(violation: RuleViolation, request: Descriptor) -> Violation:
    proto = violation.proto
    path = ""
    parent: Descriptor | None = request
    for element in proto.field.elements if proto.field else ():
        # None for the name of a oneof
        field = parent.fields_by_name.get(element.field_name) if parent else None
        name = field.json_name if field else element.field_name
        path += f".{name}" if path else name
        if element.subscript is not None:
            path += f"[{element.subscript.value}]"
        parent = field.message_type if field else None
    name, _, _ = proto.rule_id.partition(".")
    if not path and name in request.fields_by_name:
        path = request.fields_by_name[name].json_name  # a rule on the whole message
    return Violation(path, proto.message, proto.rule_id)


def _nuls(message: Message, prefix: str) -> Iterator[Violation]:
    for field, value in message.ListFields():
        path = f"{prefix}{field.json_name}"
        items = list(value) if field.is_repeated else [value]
        if field.type == FieldDescriptor.TYPE_STRING:
            if any("\0" in item for item in items):
                yield Violation(
                    path, "must not contain the NUL character (U+0000)", "string.no_nul"
                )
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for item in items:
                if isinstance(item, Message):
                    yield from _nuls(item, f"{path}.")
