#!/bin/sh
# Install fastapi-users into an environment of its own, build/peers/fastapi_users.
set -eu
cd "$(dirname "$0")/../../../.."
to=build/peers/fastapi_users
lock=tests/load/peers/fastapi_users/requirements.lock
rm -rf "$to"
"${PYTHON:-python3}" -m venv "$to"
"$to/bin/pip" install -q --disable-pip-version-check --require-hashes --only-binary :all: -r "$lock"
sed -n 's/^fastapi-users==\([^ ]*\).*/\1/p' "$lock" > "$to/version"
