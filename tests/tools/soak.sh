#!/usr/bin/env bash
# Runs for hours what the ordinary tests run for seconds, and says which part failed.
#
# Usage: soak.sh [PART..]        all of: tests models fuzz mutants
#
# COWSHED_SOAK_STATES, COWSHED_SOAK_SECONDS, ..   how long the tests run; docs/testing.md lists them
# COWSHED_SCHEDULES=1000000                       orders that each model plays
# COWSHED_FUZZ_SECONDS=1800                       for each fuzz target
set -euo pipefail
cd "$(dirname "$0")/../.."
CARGO=${CARGO:-cargo}
TOOLS=tests/tools

# Tests marked as ignored whose names begin with soak_, one after the other: each takes the whole machine.
part_tests() {
    local file tests=()
    for file in $(grep -l 'fn soak_' tests/*.rs); do tests+=(--test "$(basename "$file" .rs)"); done
    $CARGO test --locked --release --no-fail-fast "${tests[@]}" -- --ignored --nocapture --test-threads=1 soak_
}

part_models() { COWSHED_SCHEDULES=${COWSHED_SCHEDULES:-1000000} $TOOLS/models.sh; }

part_fuzz() {
    local target failed=0
    for target in tests/fuzz/fuzz_targets/*.rs; do
        $TOOLS/fuzz.sh "$(basename "$target" .rs)" "${COWSHED_FUZZ_SECONDS:-1800}" || failed=1
    done
    return $failed
}

part_mutants() { $TOOLS/mutants.sh; }

failed=()
for part in "${@:-tests models fuzz mutants}"; do
    for one in $part; do
        declare -F "part_$one" >/dev/null || { echo "soak: there is no part $one" >&2; exit 2; }
        echo "soak: $one"
        ( "part_$one" ) || failed+=("$one")
    done
done
[[ ${#failed[@]} -eq 0 ]] || { echo "soak: failed: ${failed[*]}" >&2; exit 1; }
echo "soak: all parts passed"
