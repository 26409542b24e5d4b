#!/bin/sh
# Compares the contract with the one of the last release tag. Before the first release
# clients have no stable contract, and it may change. `buf breaking --against .git` lacks
# the imports, so an export of the tag is completed with the present ones.
set -eu
base=$(git describe --tags --abbrev=0 2>/dev/null || true)
if [ -z "$base" ] || [ -z "$(git ls-tree --name-only "$base" buf.yaml 2>/dev/null)" ]; then
  echo "buf breaking: no earlier contract to compare with"
  exit 0
fi
old=build/buf-baseline
rm -rf "$old" && mkdir -p "$old/build"
git archive "$base" buf.yaml proto | tar -x -C "$old"
cp -R build/proto-deps "$old/build/proto-deps"
buf breaking --against "$old"
echo "buf breaking: nothing broken since $base"
