#!/usr/bin/env bash
# Searches for inputs that break a promise.
#
# Usage: fuzz.sh TARGET SECONDS     one of header image partitions ext4 fat free nbd texts virtio qemu
#        fuzz.sh --minimise TARGET  replaces the kept corpus by the smallest one with the same coverage
#
# Installs cargo-fuzz when it is missing. Needs no nightly toolchain: the flags are unlocked by RUSTC_BOOTSTRAP. Runs without
# a sanitizer, ten times as fast, for there is hardly any unsafe code; COWSHED_FUZZ_SANITIZER=address takes one.
#
# What is found is left in tests/fuzz/artifacts/TARGET, and the exit code is then not 0: copy the file to
# tests/fuzz/findings/TARGET under a name that says what it breaks. New inputs that reach more code stay in
# target/fuzz-corpus.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

die() { printf 'fuzz: %s\n' "$*" >&2; exit 1; }

mode=run
if [[ ${1:-} == --minimise ]]; then
    mode=minimise
    shift
fi
target=${1:-}
seconds=${2:-60}
[[ -f tests/fuzz/fuzz_targets/$target.rs ]] || die "usage: fuzz.sh [--minimise] TARGET [SECONDS]; targets: $(cd tests/fuzz/fuzz_targets && printf '%s ' *.rs | sed 's/\.rs//g')"

export PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
export RUSTC_BOOTSTRAP=1

# What an input leaves behind goes with the run.
TMPDIR=$(mktemp -d)
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT

seeds=$target
[[ $target == qemu ]] && seeds=image
kept=tests/fuzz/corpus/$seeds
grown=${CARGO_TARGET_DIR:-target}/fuzz-corpus/$target
mkdir -p "$grown" "$kept" "tests/fuzz/findings/$seeds"
run=(cargo fuzz run --fuzz-dir tests/fuzz --sanitizer "${COWSHED_FUZZ_SANITIZER:-none}" "$target")
limits=(-timeout=60 -rss_limit_mb=3000 -malloc_limit_mb=256 -max_len=8192)

if [[ $mode == minimise ]]; then
    smallest=$(mktemp -d)
    "${run[@]}" "$smallest" "$grown" "$kept" -- -merge=1 "${limits[@]}"
    rm -rf "$kept"
    mv "$smallest" "$kept"
    chmod 755 "$kept"
    exit
fi
"${run[@]}" "$grown" "$kept" "tests/fuzz/findings/$seeds" -- \
    -max_total_time="$seconds" "${limits[@]}" -print_final_stats=1
