"""JSON <-> messages: protobuf-py's native codec, mended where ProtoJSON wants more.

It is mended in three ways: an aliased enum prints the first name declared, a
`float` prints the shortest decimal that reads back as the same float32, and a
body that gives one field twice or two members of one oneof is refused.
"""

import importlib.util
import math
import re
import struct
from collections.abc import Iterable, Iterator
from typing import Any

import orjson
from google.rpc import error_details_pb2, status_pb2
from protobuf import (
    DescField,
    DescMessage,
    DescMethod,
    Message,
    Registry,
    ScalarType,
    message_to_json_value,
)
from protobuf.wkt.google.protobuf import descriptor_pb

from edge.schema.faults import (
    BAD_INPUT,
    FaultFinder,
    refuse_ambiguity,
    refuse_depth,
    strict_tree,
)
from edge.schema.shapes import (
    SPECIAL,
    WELL_KNOWN,
    WRAPPERS,
    Element,
    Key,
    Shape,
    element_of,
    is_list,
    is_map,
    oneof_of,
)

_HUMP = re.compile("_+(.?)")
_FLOAT32_MAX = (2 - 2**-23) * 2.0**127
_CUT = 3.4028234e38  # the shortest decimal below it that reads back as it


class Codec:
    """Every message type of one descriptor set, to and from JSON."""

    def __init__(self, descriptors: bytes) -> None:
        """Read a serialised FileDescriptorSet.

        Raises ValueError if it is not one or an import is missing, RuntimeError
        where the native codec is absent: its pure twin is fifty times slower.
        """
        if importlib.util.find_spec("protobuf_ext") is None:
            raise RuntimeError("protobuf-py's native codec, protobuf-py-ext, is absent")
        self.files = descriptor_pb.FileDescriptorSet.from_binary(descriptors)
        _add_rpc_files(self.files)
        for message in _messages(self.files):
            _name_fields(message)
        for enum in _enums(self.files):
            _first_alias_last(enum)
        self.registry: Registry = self.files.to_registry()
        self.faults = FaultFinder(self.registry)
        self._shapes: dict[str, Shape] = {}
        self._floats: dict[str, bool] = {}

    def methods(self) -> Iterator[DescMethod]:
        """Give every method of every service, in the order of the files."""
        for proto in self.files.file:
            file = self.registry.file(proto.name)
            for service in file.services if file else ():
                yield from service.methods

    def shape(self, desc: DescMessage) -> Shape:
        """Give the shape of a message type; made once per type."""
        shape = self._shapes.get(desc.type_name)
        if shape is None:
            shape = self._shapes[desc.type_name] = Shape(desc)
            for field in desc.fields:
                key = self._key(field)
                shape.keys[field.name] = shape.keys[field.json_name] = key
        return shape

    def _key(self, field: DescField) -> Key:
        element = element_of(field)
        name = "" if isinstance(element, ScalarType) else element.type_name
        plain = isinstance(element, DescMessage) and name not in SPECIAL
        return Key(
            field,
            field.json_name,
            oneof_of(field),
            name in (f"{WELL_KNOWN}Value", f"{WELL_KNOWN}NullValue"),
            self.shape(element) if plain and isinstance(element, DescMessage) else None,
            is_list(field) or is_map(field),
        )

    def read(self, body: bytes, shape: Shape, tree: Any = None) -> tuple[Message, Any]:
        """Give the message that a JSON body is, and the body as Python values.

        `tree` is these values where they are known. Raises Refused that names the
        faulty field by its JSON path.
        """
        refuse_depth(body)
        try:
            message = shape.type.from_json(body, registry=self.registry)
        except BAD_INPUT:
            raise self.faults.refusal(body, shape) from None
        tree = strict_tree(body) if tree is None else tree
        if isinstance(tree, dict) and not shape.special:
            refuse_ambiguity(tree, shape)
        return message, tree

    def to_json(self, message: Message) -> bytes:
        """Give a message's JSON, defaults written out.

        Raises one of BAD_INPUT where the message has none, such as a NaN in a
        google.protobuf.Value or a Timestamp beyond the year 9999.
        """
        if self._has_floats(message.desc()):
            return orjson.dumps(self.to_value(message))
        text = message.to_json(registry=self.registry, always_emit_implicit=True)
        return text.encode()

    def to_value(self, message: Message) -> Any:
        """Give a message's JSON as Python values; raises what `to_json` raises."""
        value: Any = message_to_json_value(
            message, registry=self.registry, always_emit_implicit=True
        )
        return self._shortened(value, message.desc())

    def _has_floats(self, desc: DescMessage) -> bool:
        """Tell whether a `float` may stand anywhere within a message type."""
        known = self._floats.get(desc.type_name)
        if known is None:
            known = self._floats[desc.type_name] = any(
                ScalarType.FLOAT in _scalars(part) for part in _within(desc, {})
            )
        return known

    def _shortened(self, value: Any, element: Element) -> Any:
        """Give a JSON value with every float32 in its shortest decimal form."""
        if element is ScalarType.FLOAT:
            return _shortest(value) if isinstance(value, float) else value
        if not isinstance(element, DescMessage) or not self._has_floats(element):
            return value
        if element.type_name in WRAPPERS:
            return self._shortened(value, WRAPPERS[element.type_name])
        if isinstance(value, dict):
            for field in element.fields:
                if field.json_name in value:
                    item = value[field.json_name]
                    value[field.json_name] = self._shortened_field(item, field)
        return value

    def _shortened_field(self, value: Any, field: DescField) -> Any:
        element = element_of(field)
        if is_list(field):
            return [self._shortened(item, element) for item in value]
        if is_map(field):
            return {key: self._shortened(item, element) for key, item in value.items()}
        return self._shortened(value, element)


def _scalars(desc: DescMessage) -> set[Element]:
    return {element_of(field) for field in desc.fields}


def _within(desc: DescMessage, seen: dict[str, DescMessage]) -> Iterable[DescMessage]:
    """Give a message type and every type that may stand within it."""
    if desc.type_name not in seen:
        seen[desc.type_name] = desc
        for element in _scalars(desc):
            if isinstance(element, DescMessage):
                _within(element, seen)
    return seen.values()


def _shortest(value: float) -> float:
    """Give the double whose shortest decimal reads back as the same float32.

    The greatest one is cut, not rounded: readers refuse what is beyond it.
    """
    for digits in range(1, 9):
        short = float(f"{value:.{digits}g}")
        if _is_float32(short, value):
            return short if abs(short) <= _FLOAT32_MAX else math.copysign(_CUT, value)
    return float(f"{value:.9g}")


def _is_float32(short: float, value: float) -> bool:
    try:
        return bool(struct.unpack("<f", struct.pack("<f", short))[0] == value)
    except OverflowError:
        return False


def _add_rpc_files(files: descriptor_pb.FileDescriptorSet) -> None:
    """Make the error details known, whether or not the service imports them."""
    known = {file.name for file in files.file}
    for module in (status_pb2, error_details_pb2):
        for needed in (*module.DESCRIPTOR.dependencies, module.DESCRIPTOR):
            if needed.name not in known:
                known.add(needed.name)
                raw = needed.serialized_pb
                files.file.append(descriptor_pb.FileDescriptorProto.from_binary(raw))


def _messages(
    files: descriptor_pb.FileDescriptorSet,
) -> Iterator[descriptor_pb.DescriptorProto]:
    waiting = [message for file in files.file for message in file.message_type]
    while waiting:
        message = waiting.pop()
        waiting.extend(message.nested_type)
        yield message


def _enums(
    files: descriptor_pb.FileDescriptorSet,
) -> Iterator[descriptor_pb.EnumDescriptorProto]:
    for file in files.file:
        yield from file.enum_type
    for message in _messages(files):
        yield from message.enum_type


def _name_fields(message: descriptor_pb.DescriptorProto) -> None:
    """Give fields their JSON names as protoc does; sets made by hand lack them."""
    for field in message.field:
        if not field.json_name:
            field.json_name = _HUMP.sub(lambda hump: hump[1].upper(), field.name)


def _first_alias_last(enum: descriptor_pb.EnumDescriptorProto) -> None:
    """Order aliases so that the codec, which prints the last, prints the first.

    The numbers keep their order, for the first one is the default. The cost is
    that source comments of an aliased enum's values may stand at another value.
    """
    by_number: dict[int, list[descriptor_pb.EnumValueDescriptorProto]] = {}
    for value in enum.value:
        by_number.setdefault(value.number, []).append(value)
    if len(by_number) < len(enum.value):
        enum.value = [v for same in by_number.values() for v in reversed(same)]
