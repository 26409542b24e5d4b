"""Comments of proto files, by the full name of what they stand at."""

from collections.abc import Iterator, Sequence
from typing import Any

from protobuf.wkt.google.protobuf import descriptor_pb

Path = tuple[int, ...]
# Field numbers of google/protobuf/descriptor.proto, which source paths consist of.
_FILE = {"message_type": 4, "enum_type": 5, "service": 6}
_MESSAGE = {"field": 2, "nested_type": 3, "enum_type": 4}
_ENUM = {"value": 2}
_SERVICE = {"method": 2}
_PARTS = {
    "message_type": _MESSAGE,
    "nested_type": _MESSAGE,
    "enum_type": _ENUM,
    "service": _SERVICE,
}


def read_comments(files: Sequence[descriptor_pb.FileDescriptorProto]) -> dict[str, str]:
    """Give every comment of files that have source information."""
    found: dict[str, str] = {}
    for file in files:
        if file.source_code_info is None:
            continue
        told = {
            tuple(place.path): place.leading_comments or place.trailing_comments or ""
            for place in file.source_code_info.location
        }
        for name, path in _named(file, _FILE, file.package or "", ()):
            text = told.get(path, "")
            if text.strip():
                lines = (line.removeprefix(" ") for line in text.strip().split("\n"))
                found[name] = "\n".join(lines).strip()
    return found


def _named(
    holder: Any, parts: dict[str, int], prefix: str, path: Path
) -> Iterator[tuple[str, Path]]:
    for part, number in parts.items():
        for index, item in enumerate(getattr(holder, part)):
            name, at = f"{prefix}.{item.name}".lstrip("."), (*path, number, index)
            yield name, at
            yield from _named(item, _PARTS.get(part, {}), name, at)
