"""JSON <-> messages: protobuf-py's native codec, corrected where ProtoJSON differs.

Three corrections: an aliased enum prints the name that is declared first, a `float`
prints the shortest decimal that reads back as the same float32, and a body that sets
a field twice or two members of one oneof is refused.
"""

import importlib.util
import json
import math
import re
import struct
from collections.abc import Callable, Iterator
from typing import Any

import orjson
from google.rpc import error_details_pb2, status_pb2
from protobuf import (
    DescMessage,
    DescMethod,
    Message,
    Registry,
    message_to_json_value,
)
from protobuf.wkt.google.protobuf import descriptor_pb as pb

from edge.errors import BAD_INPUT
from edge.schema.faults import (
    FaultFinder,
    refuse_ambiguity,
    refuse_complexity,
    strict_tree,
)
from edge.schema.fields import Field, Shape, shape_of
from edge.schema.kinds import ANY, FLOAT, FLOAT32_MAX, rounded

_UNDERSCORES = re.compile("_+(.?)")
# The shortest decimal below FLOAT32_MAX that reads back as FLOAT32_MAX.
_FLOAT32_MAX_DECIMAL = 3.4028234e38
Convert = Callable[[Any], Any]


class Codec:
    """Convert the message types of one descriptor set to and from JSON."""

    def __init__(self, descriptors: bytes) -> None:
        """Read a serialised FileDescriptorSet.

        Raises ValueError if it is not one or an import is missing, RuntimeError
        if the native codec is missing: the pure Python one is fifty times slower.
        """
        if importlib.util.find_spec("protobuf_ext") is None:
            raise RuntimeError(
                "protobuf-py's native codec is missing: install protobuf-py-ext"
            )
        files = pb.FileDescriptorSet.from_binary(descriptors)
        _add_rpc_files(files)
        for file in files.file:
            _normalize(file)
        self.registry: Registry = files.to_registry()
        self._names = [file.name for file in files.file]
        self._faults = FaultFinder(self.registry)
        self.parsed = self._faults.read
        self._shapes: dict[str, Shape] = {}

    def methods(self) -> Iterator[DescMethod]:
        """Yield every method of every service, in the order of the files."""
        for name in self._names:
            file = self.registry.file(name)
            for service in file.services if file else ():
                yield from service.methods

    def shape(self, desc: DescMessage) -> Shape:
        """Return the shape of a message type; created once per type."""
        return shape_of(desc, self._shapes)

    def read(self, body: bytes, shape: Shape, tree: Any = None) -> tuple[Message, Any]:
        """Parse a JSON body; return the message and the body as Python values.

        `tree` is the parsed body, if the caller has it. Raises HttpError that names
        the invalid field by its JSON path.
        """
        refuse_complexity(body)
        try:
            message = self._faults.read(shape, body)
        except BAD_INPUT:
            message = self._read_again(body, shape)
        tree = strict_tree(body) if tree is None else tree
        refuse_ambiguity(tree, shape, self.unpacked_type)
        return message, tree

    def _read_again(self, body: bytes, shape: Shape) -> Message:
        """Parse a refused body again with its floats rounded; raises HttpError."""
        if b"38" not in body or not shape.has_floats:
            raise self._faults.refusal(body, shape)
        tree = self._each_float(strict_tree(body), shape, rounded)
        try:
            text = json.dumps(tree, allow_nan=False)
        except ValueError:
            raise self._faults.refusal(body, shape) from None
        try:
            return self._faults.read(shape, text)
        except BAD_INPUT:
            raise self._faults.refusal(text.encode(), shape) from None

    def unpacked_type(self, packed: Any) -> Shape | None:
        """Return the type inside the JSON of a google.protobuf.Any, None if unknown."""
        url = packed.get("@type") if isinstance(packed, dict) else None
        desc = isinstance(url, str) and self.registry.message(url.rpartition("/")[2])
        return self.shape(desc) if desc else None

    def to_json(self, message: Message, shape: Shape) -> bytes:
        """Return the JSON of a message of this shape, default values included.

        Raises one of BAD_INPUT if the message has no JSON form, such as a NaN in a
        google.protobuf.Value or a Timestamp after the year 9999.
        """
        if shape.has_floats:
            return orjson.dumps(self.to_value(message))
        text = message.to_json(registry=self.registry, always_emit_implicit=True)
        return text.encode()

    def to_value(self, message: Message) -> Any:
        """Return a message's JSON as Python values; raises what `to_json` raises."""
        value: Any = message_to_json_value(
            message, registry=self.registry, always_emit_implicit=True
        )
        return self._each_float(value, self.shape(message.desc()), _shortest)

    def _each_float(self, value: Any, shape: Shape, convert: Convert) -> Any:
        """Convert every float32 in a message's JSON."""
        if shape.kind is FLOAT:
            return convert(value)
        if shape.name == ANY and (inner := self.unpacked_type(value)):
            if not inner.special:
                return self._each_float(value, inner, convert)
            unpacked = self._each_float(value.get("value"), inner, convert)
            return value | {"value": unpacked}
        if shape.special or not isinstance(value, dict) or not shape.has_floats:
            return value
        converted = dict(value)
        for name, item in value.items():
            if field := shape.named.get(name):
                converted[name] = self._converted(item, field, convert)
        return converted

    def _converted(self, value: Any, field: Field, convert: Convert) -> Any:
        def element(item: Any) -> Any:
            if field.kind is FLOAT:
                return convert(item)
            return self._each_float(item, field.typed, convert) if field.typed else item

        if isinstance(value, list) and field.many is list:
            return [element(item) for item in value]
        if isinstance(value, dict) and field.many is dict:
            return {key: element(item) for key, item in value.items()}
        return element(value)


def _shortest(value: Any) -> Any:
    """Return the double whose shortest decimal reads back as the same float32.

    The largest one is rounded down: parsers refuse anything above FLOAT32_MAX.
    A value that is no number, such as "NaN", is returned unchanged.
    """
    if not isinstance(value, float):
        return value
    for digits in range(1, 10):
        short = float(f"{value:.{digits}g}")
        if abs(short) > FLOAT32_MAX:
            short = math.copysign(_FLOAT32_MAX_DECIMAL, value)
        if struct.unpack("<f", struct.pack("<f", short))[0] == value:
            return short
    return value


def _add_rpc_files(files: pb.FileDescriptorSet) -> None:
    """Add the types of error details, which the service may not import."""
    known = {file.name for file in files.file}
    for module in (status_pb2, error_details_pb2):
        for file in (*module.DESCRIPTOR.dependencies, module.DESCRIPTOR):
            if file.name not in known:
                known.add(file.name)
                serialized = file.serialized_pb
                files.file.append(pb.FileDescriptorProto.from_binary(serialized))


def _normalize(parent: pb.FileDescriptorProto | pb.DescriptorProto) -> None:
    """Add the JSON names that protoc adds, and reverse the order of enum aliases.

    Descriptor sets that are written by hand lack JSON names. The codec prints the
    last alias of an enum, and ProtoJSON the first. The numbers keep their order,
    because the first one is the default.
    """
    if isinstance(parent, pb.DescriptorProto):
        messages = parent.nested_type
        for field in parent.field:
            json_name = _UNDERSCORES.sub(lambda match: match[1].upper(), field.name)
            field.json_name = field.json_name or json_name
    else:
        messages = parent.message_type
    for enum in parent.enum_type:
        by_number: dict[int, list[pb.EnumValueDescriptorProto]] = {}
        for value in enum.value:
            by_number.setdefault(value.number, []).append(value)
        if len(by_number) < len(enum.value):
            enum.value = [v for same in by_number.values() for v in reversed(same)]
    for message in messages:
        _normalize(message)
