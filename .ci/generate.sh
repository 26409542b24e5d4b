#!/bin/sh
# Generate messages, typed stubs, contract.binpb and service_config.json from proto/.
# Usage: generate.sh [FOLDER] (default: generated/). contract.binpb is a
# FileDescriptorSet with imports, and with the comments of our own files.
set -eu
out=${1:-generated}
deps=build/proto-deps
rm -rf "$out" && mkdir -p "$out" build
python .ci/proto_deps.py "$deps"
protoc() { python -m grpc_tools.protoc -I proto -I "$deps" --descriptor_set_in="$deps/validate.binpb" "$@"; }
ours=$(cd proto && find . -name '*.proto' | cut -c3- | LC_ALL=C sort)
services=$(cd proto && grep -l '^service ' $ours)
# shellcheck disable=SC2086
protoc --python_out="$out" --mypy_out="quiet:$out" $ours buf/validate/validate.proto
# shellcheck disable=SC2086
protoc --grpc_python_out="$out" --mypy_grpc_out="quiet,only_async:$out" $services
# shellcheck disable=SC2086
protoc --include_imports --include_source_info --descriptor_set_out=build/contract.binpb $ours google/rpc/error_details.proto
python - build/contract.binpb "$out/contract.binpb" <<'P'
import sys
from google.protobuf import descriptor_pb2
contract = descriptor_pb2.FileDescriptorSet.FromString(open(sys.argv[1], "rb").read())
for file in contract.file:
    if not file.name.startswith("blatam/"):
        file.ClearField("source_code_info")
open(sys.argv[2], "wb").write(contract.SerializeToString(deterministic=True))
P
python .ci/service_config.py "$out" > "$out/service_config.json"
# A wheel holds only the files of packages.
for name in contract.binpb service_config.json; do
	ln -s "../$name" "$out/blatam/$name"
done
