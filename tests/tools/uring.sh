#!/usr/bin/env bash
# Runs the tests of the view over io_uring: those that ran over /dev/fuse, and those of the rings themselves. The last of them
# boots a guest that writes and flushes.
#
# Usage: uring.sh
#
# It switches the kernel's FUSE over io_uring on (as root, or through sudo), and puts the switch back where it was. A kernel
# that has no such switch (Linux before 6.14) has nothing to test.
set -euo pipefail
cd "$(dirname "$0")/../.."
CARGO=${CARGO:-cargo}
SWITCH=/sys/module/fuse/parameters/enable_uring

as_root() { if [[ $EUID -eq 0 ]]; then "$@"; else sudo "$@"; fi; }
switch() { echo "$1" | as_root tee "$SWITCH" >/dev/null; }

# Where FUSE is a module, it may not be loaded yet.
[[ -e $SWITCH ]] || as_root modprobe fuse 2>/dev/null || true
if [[ ! -e $SWITCH ]]; then
    echo "uring: Linux $(uname -r) has no FUSE over io_uring ($SWITCH): there is nothing to test"
    exit 0
fi
before=$(<"$SWITCH")
trap 'switch "$before"' EXIT
switch Y

# What the tests mount is mounted over rings, or the test fails.
export COWSHED_TRANSPORT=uring
VIEWS=(view_disks view_fio view_full view_guestfs view_kill view_reopen view_writers cli_mount cli_run)
if $CARGO nextest --version >/dev/null 2>&1; then
    binaries=$(printf ' | binary(=%s)' "${VIEWS[@]}")
    $CARGO nextest run --workspace --locked --no-fail-fast --test-threads "$(($(nproc) * 3 / 2))" -E "package(fuse-mount)$binaries"
    $CARGO nextest run --workspace --locked --no-fail-fast --run-ignored only -E "package(fuse-mount) | binary(=cli_run)"
else
    # In one process, one after the other: some of them start programs, which must not inherit the mounts of others.
    $CARGO test -p fuse-mount --locked --no-fail-fast --all-targets -- --include-ignored --test-threads 1
    $CARGO test --workspace --locked --no-fail-fast "${VIEWS[@]/#/--test=}"
    $CARGO test --workspace --locked --no-fail-fast --test cli_run -- --ignored
fi
echo "uring: all passed"
