#!/bin/sh
# Checks everything that CI checks; writes nothing outside target/. The first failure ends it.
set -eu
cd "$(dirname "$0")/.."

step() {
    echo "== $*"
    "$@"
}

step cargo fmt --check
step cargo clippy --locked --all-targets -- -D warnings
RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" step cargo doc --locked --no-deps --document-private-items

if cargo deny --version >/dev/null 2>&1; then
    step cargo deny --log-level error check licenses bans sources
else
    echo "== cargo deny: not installed, skipped (cargo install cargo-deny)"
fi

# The real initiators of the tests: an unpacked qemu (see prerequisites.sh) goes before the system's.
if [ -x target/tools/qemu/usr/bin/qemu-img ]; then
    PATH="$PWD/target/tools/qemu/usr/bin:$PATH"
    QEMU_MODULE_DIR=$(echo "$PWD"/target/tools/qemu/usr/lib/*/qemu)
    export PATH QEMU_MODULE_DIR
fi

if cargo nextest --version >/dev/null 2>&1; then
    step cargo nextest run --locked --no-fail-fast
    step cargo test --locked --doc
else
    step cargo test --locked --no-fail-fast
fi
