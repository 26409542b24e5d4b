#!/bin/sh
# Build grpc-gateway for our contract into build/peers/grpc_gateway. Needs Go, `make
# setup` and a module proxy.
set -eu
cd "$(dirname "$0")/../../../.."
gateway=v2.33.0 protobuf=v1.36.12 grpc=v1.85.0 grpc_plugin=v1.6.2
to=$PWD/build/peers/grpc_gateway
source=tests/load/peers/grpc_gateway
rm -rf "$to" && mkdir -p "$to/source"
export GOBIN="$to/bin"
go install google.golang.org/protobuf/cmd/protoc-gen-go@$protobuf
go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@$grpc_plugin
go install github.com/grpc-ecosystem/grpc-gateway/v2/protoc-gen-grpc-gateway@$gateway

# The contract has no go_package, so each file's package is given here.
files="$(cd proto && find . -name '*.proto' | cut -c3-) buf/validate/validate.proto"
options=
for plugin in go go-grpc grpc-gateway; do
	options="$options --plugin=protoc-gen-$plugin=$GOBIN/protoc-gen-$plugin"
	options="$options --${plugin}_out=$to/source --${plugin}_opt=module=gateway"
	for file in $files; do
		options="$options --${plugin}_opt=M$file=gateway/$(dirname "$file")"
	done
done
# shellcheck disable=SC2086
.venv/bin/python -m grpc_tools.protoc --descriptor_set_in=generated/contract.binpb $options $files

cp "$source/main.go" "$to/source/"
cd "$to/source"
go mod init gateway
go get github.com/grpc-ecosystem/grpc-gateway/v2@$gateway google.golang.org/grpc@$grpc google.golang.org/protobuf@$protobuf
go mod tidy
go build -o "$to/gateway" .
echo "$gateway, $(go env GOVERSION)" > "$to/version"
