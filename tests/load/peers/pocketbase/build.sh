#!/bin/sh
# Build PocketBase into build/peers/pocketbase. Needs Go and a module proxy.
set -eu
cd "$(dirname "$0")/../../../.."
version=v0.36.8 # the last one for Go 1.26
to=$PWD/build/peers/pocketbase
rm -rf "$to" && mkdir -p "$to/source"
cp tests/load/peers/pocketbase/main.go "$to/source/"
cd "$to/source"
go mod init pocketbase
go get github.com/pocketbase/pocketbase@$version
go mod tidy
go build -o "$to/pocketbase" .
echo "$version, $(go env GOVERSION)" > "$to/version"
