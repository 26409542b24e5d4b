#!/bin/sh
# Build Authorizer into build/peers/authorizer, from a checkout of
# github.com/authorizerdev/authorizer: build.sh CHECKOUT. Needs Go and a module proxy.
set -eu
checkout=$(cd "$1" && pwd)
cd "$(dirname "$0")/../../../.."
to=$PWD/build/peers/authorizer
rm -rf "$to" && mkdir -p "$to/web"
cp -R "$checkout/web/templates" "$to/web/"
(cd "$checkout" && go build -buildvcs=false -o "$to/authorizer" .)
echo "$(git -C "$checkout" describe --tags --always), $(go env GOVERSION)" > "$to/version"
