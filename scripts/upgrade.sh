#!/bin/sh
# Builds the programs of another revision of this repository, and runs an upgrade from those to the present ones under load.
set -eu
cd "$(dirname "$0")/.."

if [ $# -ne 1 ] || ! revision=$(git rev-parse --verify --quiet "$1^{commit}"); then
    echo "say which revision to upgrade from: make upgrade PREVIOUS=REVISION" >&2
    exit 2
fi
folder=target/previous/$revision
if [ ! -e "$folder/.git" ]; then
    git worktree prune
    git worktree add --detach "$folder" "$revision"
fi
(cd "$folder" && cargo build --locked --release --bins)
PREVIOUS=$PWD/$folder/target/release cargo test --locked --test mixed_versions -- --nocapture older_release
