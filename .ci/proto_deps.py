"""Write the third-party proto files that ours import into a folder, without network.

Google's files are copied from the installed ``googleapis-common-protos`` wheel.
The installed ``protovalidate`` wheel has the descriptor of
``buf/validate/validate.proto`` but not its source: protoc reads the descriptor
(``validate.binpb``), and buf a source that is printed from it.
"""

from __future__ import annotations

import json
import shutil
import sys
from importlib.metadata import files
from itertools import groupby
from pathlib import Path

from google.protobuf import descriptor_pb2 as d

# There is no public accessor; the lock pins the version.
from protovalidate._gen.buf.validate.validate_pb import desc as validate_desc

GOOGLE = (
    "google/api/annotations.proto",
    "google/api/field_behavior.proto",
    "google/api/http.proto",
    "google/api/httpbody.proto",
    "google/rpc/code.proto",
    "google/rpc/error_details.proto",
    "google/rpc/status.proto",
)
Field = d.FieldDescriptorProto
SCALARS = {number: name[5:].lower() for name, number in Field.Type.items()}


def field(f: d.FieldDescriptorProto, maps: dict[str, d.DescriptorProto]) -> str:
    """Return the source of a field."""
    kind = f.type_name or SCALARS[f.type]
    label = {Field.LABEL_REPEATED: "repeated ", Field.LABEL_REQUIRED: "required "}
    prefix = label.get(f.label, "" if f.HasField("oneof_index") else "optional ")
    if entry := maps.get(f.type_name):
        key, value = entry.field
        kind = f"map<{SCALARS[key.type]}, {value.type_name or SCALARS[value.type]}>"
        prefix = ""
    options = []
    if f.HasField("default_value"):
        text = f.type in (Field.TYPE_STRING, Field.TYPE_BYTES)
        default = json.dumps(f.default_value) if text else f.default_value
        options.append(f"default = {default}")
    if f.options.HasField("packed"):
        options.append(f"packed = {str(f.options.packed).lower()}")
    tail = f" [{', '.join(options)}]" if options else ""
    return f"{prefix}{kind} {f.name} = {f.number}{tail};"


def enum(e: d.EnumDescriptorProto) -> list[str]:
    """Return the source of an enum."""
    alias = ["option allow_alias = true;"] if e.options.allow_alias else []
    values = [f"{value.name} = {value.number};" for value in e.value]
    return [f"enum {e.name} {{", *alias, *values, "}"]


def extension(x: d.FieldDescriptorProto) -> list[str]:
    """Return the source of an extension."""
    return [f"extend {x.extendee} {{", field(x, {}), "}"]


def message(m: d.DescriptorProto, scope: str) -> list[str]:
    """Return the source of a message and everything inside it."""
    full = f"{scope}.{m.name}"
    maps = {f"{full}.{n.name}": n for n in m.nested_type if n.options.map_entry}
    out = [f"message {m.name} {{"]
    for nested in m.nested_type:
        if not nested.options.map_entry:
            out += message(nested, full)
    for nested_enum in m.enum_type:
        out += enum(nested_enum)
    for oneof, members in groupby(
        m.field, lambda f: f.oneof_index if f.HasField("oneof_index") else -1
    ):
        lines = [field(f, maps) for f in members]
        if oneof >= 0:
            lines = [f"oneof {m.oneof_decl[oneof].name} {{", *lines, "}"]
        out += lines
    for span in m.extension_range:
        end = "max" if span.end == 1 << 29 else span.end - 1
        out.append(f"extensions {span.start} to {end};")
    for gap in m.reserved_range:
        out.append(f"reserved {gap.start} to {gap.end - 1};")
    for x in m.extension:
        out += extension(x)
    return [*out, "}"]


def source(f: d.FileDescriptorProto) -> str:
    """Return the source of a proto2 file, without comments and custom options."""
    if f.syntax not in ("", "proto2"):
        raise SystemExit(f"{f.name}: only proto2 is supported, not {f.syntax}")
    out = ['syntax = "proto2";', f"package {f.package};"]
    out += [f'import "{name}";' for name in f.dependency]
    for x in f.extension:
        out += extension(x)
    for m in f.message_type:
        out += message(m, f".{f.package}")
    for e in f.enum_type:
        out += enum(e)
    return "\n".join(out) + "\n"


def main(folder: Path) -> None:
    """Replace the folder."""
    shutil.rmtree(folder, ignore_errors=True)
    shipped = {str(p): p for p in files("googleapis-common-protos") or []}
    validate = d.FileDescriptorProto.FromString(validate_desc().proto.to_binary())
    texts = {name: shipped[name].read_text() for name in GOOGLE}
    for name, text in {**texts, validate.name: source(validate)}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    descriptors = d.FileDescriptorSet(file=[validate])
    (folder / "validate.binpb").write_bytes(descriptors.SerializeToString())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
