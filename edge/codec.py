"""JSON <-> messages: protobuf-py's native codec, mended where ProtoJSON wants more.

It is mended in three ways: an aliased enum prints the first name declared, a
`float` prints the shortest decimal that reads back as the same float32, and a
body that gives one field twice or two members of one oneof is refused.
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
    ScalarType,
    message_to_json_value,
)
from protobuf.wkt.google.protobuf import descriptor_pb as pb

from edge.errors import BAD_INPUT
from edge.schema.faults import FaultFinder, refuse_ambiguity, refuse_bulk, strict_tree
from edge.schema.fields import (
    ANY,
    FLOAT32_MAX,
    Field,
    Shape,
    kind_of,
    rounded,
    shape_of,
)

_HUMP = re.compile("_+(.?)")
_CUT = 3.4028234e38  # the shortest decimal below it that reads back as it
_FLOAT = kind_of(ScalarType.FLOAT)
Change = Callable[[Any], Any]


class Codec:
    """Every message type of one descriptor set, to and from JSON."""

    def __init__(self, descriptors: bytes) -> None:
        """Read a serialised FileDescriptorSet.

        Raises ValueError if it is not one or an import is missing, RuntimeError
        where the native codec is absent: its pure twin is fifty times slower.
        """
        if importlib.util.find_spec("protobuf_ext") is None:
            raise RuntimeError("protobuf-py's native codec, protobuf-py-ext, is absent")
        files = pb.FileDescriptorSet.from_binary(descriptors)
        _add_rpc_files(files)
        for file in files.file:
            _mend(file)
        self.registry: Registry = files.to_registry()
        self._names = [file.name for file in files.file]
        self._faults = FaultFinder(self.registry)
        self.parsed = self._faults.read
        self._shapes: dict[str, Shape] = {}
        self._floats: dict[str, bool] = {}

    def methods(self) -> Iterator[DescMethod]:
        """Give every method of every service, in the order of the files."""
        for name in self._names:
            file = self.registry.file(name)
            for service in file.services if file else ():
                yield from service.methods

    def shape(self, desc: DescMessage) -> Shape:
        """Give the shape of a message type; made once per type."""
        return shape_of(desc, self._shapes)

    def read(self, body: bytes, shape: Shape, tree: Any = None) -> tuple[Message, Any]:
        """Give the message that a JSON body is, and the body as Python values.

        `tree` is these values where they are known. Raises HttpError that names the
        faulty field by its JSON path.
        """
        refuse_bulk(body)
        try:
            message = self._faults.read(shape, body)
        except BAD_INPUT:
            message = self._read_again(body, shape)
        tree = strict_tree(body) if tree is None else tree
        refuse_ambiguity(tree, shape, self.within)
        return message, tree

    def _read_again(self, body: bytes, shape: Shape) -> Message:
        """Read what the codec refuses with its floats rounded; raises HttpError."""
        if b"38" not in body or not self._has_floats(shape):
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

    def within(self, packed: Any) -> Shape | None:
        """Give the type of what a google.protobuf.Any's JSON holds, if it is known."""
        url = packed.get("@type") if isinstance(packed, dict) else None
        known = isinstance(url, str) and self.registry.message(url.rpartition("/")[2])
        return self.shape(known) if known else None

    def to_json(self, message: Message) -> bytes:
        """Give a message's JSON, defaults written out.

        Raises one of BAD_INPUT where the message has none, such as a NaN in a
        google.protobuf.Value or a Timestamp beyond the year 9999.
        """
        if self._has_floats(self.shape(message.desc())):
            return orjson.dumps(self.to_value(message))
        text = message.to_json(registry=self.registry, always_emit_implicit=True)
        return text.encode()

    def to_value(self, message: Message) -> Any:
        """Give a message's JSON as Python values; raises what `to_json` raises."""
        value: Any = message_to_json_value(
            message, registry=self.registry, always_emit_implicit=True
        )
        return self._each_float(value, self.shape(message.desc()), _shortest)

    def _has_floats(self, shape: Shape) -> bool:
        """Tell whether a `float` may stand anywhere within a message type."""
        if shape.name not in self._floats:
            within: dict[str, Shape] = {}
            Shape(shape.desc, within)
            self._floats[shape.name] = any(
                held.kind is _FLOAT
                or held.name == ANY
                or any(f.kind is _FLOAT for f in held.fields)
                for held in within.values()
            )
        return self._floats[shape.name]

    def _each_float(self, value: Any, shape: Shape, change: Change) -> Any:
        """Change every float32 in a message's JSON."""
        if shape.kind is _FLOAT:
            return change(value)
        if shape.name == ANY and (inner := self.within(value)):
            if not inner.special:
                return self._each_float(value, inner, change)
            held = self._each_float(value.get("value"), inner, change)
            return value | {"value": held}
        if shape.special or not isinstance(value, dict) or not self._has_floats(shape):
            return value
        made = dict(value)
        for name, held in value.items():
            if field := shape.named.get(name):
                made[name] = self._changed(held, field, change)
        return made

    def _changed(self, value: Any, field: Field, change: Change) -> Any:
        def one(item: Any) -> Any:
            if field.kind is _FLOAT:
                return change(item)
            return self._each_float(item, field.typed, change) if field.typed else item

        if isinstance(value, list) and field.many is list:
            return [one(item) for item in value]
        if isinstance(value, dict) and field.many is dict:
            return {key: one(item) for key, item in value.items()}
        return one(value)


def _shortest(value: Any) -> Any:
    """Give the double whose shortest decimal reads back as the same float32.

    The greatest one is cut, not rounded: readers refuse what is beyond it. What
    is no number, such as "NaN", stays as it is.
    """
    if not isinstance(value, float):
        return value
    for digits in range(1, 10):
        short = float(f"{value:.{digits}g}")
        if abs(short) > FLOAT32_MAX:
            short = math.copysign(_CUT, value)
        if struct.unpack("<f", struct.pack("<f", short))[0] == value:
            return short
    return value


def _add_rpc_files(files: pb.FileDescriptorSet) -> None:
    """Make the error details known, whether or not the service imports them."""
    known = {file.name for file in files.file}
    for module in (status_pb2, error_details_pb2):
        for needed in (*module.DESCRIPTOR.dependencies, module.DESCRIPTOR):
            if needed.name not in known:
                known.add(needed.name)
                raw = needed.serialized_pb
                files.file.append(pb.FileDescriptorProto.from_binary(raw))


def _mend(holder: pb.FileDescriptorProto | pb.DescriptorProto) -> None:
    """Give fields JSON names as protoc does, which sets made by hand lack.

    Enum aliases change places, so that the codec, which prints the last, prints
    the first. The numbers keep their order, for the first one is the default.
    """
    if isinstance(holder, pb.DescriptorProto):
        messages = holder.nested_type
        for field in holder.field:
            humps = _HUMP.sub(lambda hump: hump[1].upper(), field.name)
            field.json_name = field.json_name or humps
    else:
        messages = holder.message_type
    for enum in holder.enum_type:
        by_number: dict[int, list[pb.EnumValueDescriptorProto]] = {}
        for value in enum.value:
            by_number.setdefault(value.number, []).append(value)
        if len(by_number) < len(enum.value):
            enum.value = [v for same in by_number.values() for v in reversed(same)]
    for message in messages:
        _mend(message)
