#!/bin/sh
# Build Supabase Auth into build/peers/supabase_auth, from a checkout of
# github.com/supabase/auth: build.sh CHECKOUT. Needs Go and a module proxy.
set -eu
checkout=$(cd "$1" && pwd)
cd "$(dirname "$0")/../../../.."
to=$PWD/build/peers/supabase_auth
rm -rf "$to" && mkdir -p "$to"
cp -R "$checkout/migrations" "$to/"
(cd "$checkout" && go build -buildvcs=false -o "$to/auth" .)
echo "$(git -C "$checkout" describe --tags --always), $(go env GOVERSION)" > "$to/version"
