#!/usr/bin/env bash
# Runs the tests of several threads under ThreadSanitizer, with a build of its own.
#
# Usage: tsan.sh
#
# It first proves that it sees a race: a test that has one on purpose must be reported. std itself comes uninstrumented
# with the stable toolchain; tsan.supp says what is silenced for that, and why.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
CARGO=${CARGO:-cargo}
HOST=$(rustc -vV | sed -n 's/^host: //p')
TESTS=(--test disk_stress --test disk_model --test disk_faults)

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/tsan
# The flag for sanitizers is not stable yet; the compiler and its runtime for it are the ones installed.
export RUSTC_BOOTSTRAP=1
export RUSTFLAGS="${RUSTFLAGS:-} -Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer"
export TSAN_OPTIONS="suppressions=$here/tsan.supp halt_on_error=1 second_deadlock_stack=1 ${TSAN_OPTIONS:-}"

tests() { $CARGO test --quiet --locked --package cowshed --target "$HOST" "$@"; }

tests --no-run "${TESTS[@]}"
if said=$(tests --test disk_stress -- --ignored --exact seeded_race 2>&1); then
    echo "tsan: the seeded race was not found" >&2
    exit 1
fi
grep -q 'ThreadSanitizer: data race' <<<"$said" || { echo "$said" >&2; echo "tsan: no report of the seeded race" >&2; exit 1; }
echo "tsan: the seeded race was found"

tests --test disk_stress -- --test-threads=1
tests --test disk_model -- --test-threads=1 threads_that_share
tests --test disk_faults -- --test-threads=1 latches
echo "tsan: no other race"
