#!/bin/sh
# The contracts against those at the merge base with origin/main, or else at the
# last tag. `buf breaking --against .git` lacks the imports, so an export of that
# commit is completed with ours.
set -eu
base=$(git merge-base HEAD origin/main 2>/dev/null || git describe --tags --abbrev=0 2>/dev/null || true)
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
