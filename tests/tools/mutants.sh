#!/usr/bin/env bash
# Makes the engine wrong by each patch of tests/mutants in turn, in a copy of the tree, and runs the tests that must fail.
# Each patch begins with a sentence that says what is wrong, and a line "Tests: NAME [NAME ...]".
#
# Usage: mutants.sh [NAME ...]   all patches, or the named ones; prints a table; fails when one survives or does not apply
#
# CARGO, CARGO_TARGET_DIR        as ever; the copy is built in mutants/ of the target folder
set -euo pipefail
cd "$(dirname "$0")/../.."
ROOT=$PWD
CARGO=${CARGO:-cargo}
TARGET=$(realpath -m "${CARGO_TARGET_DIR:-target}")/mutants
TREE=$TARGET/tree
# One mutant's tests may hang: they get this many seconds.
LIMIT=1200

say() { printf '%-32s %-10s %s\n' "$@"; }

listed() { git ls-files -z -- Cargo.toml Cargo.lock build.rs src tests fuse-mount docs fixtures; }

# What differs is copied with a new time, so that the build sees it, whatever an interrupted run left behind; what is gone here
# goes there.
copy_tree() {
    local file
    mkdir -p "$TREE"
    LC_ALL=C comm -z -13 <(listed | LC_ALL=C sort -z) <(cd "$TREE" && find . -type f -printf '%P\0' | LC_ALL=C sort -z) |
        (cd "$TREE" && xargs -0r rm -f)
    while IFS= read -r -d '' file; do
        cmp -s "$file" "$TREE/$file" || install -D -m "$(stat -c %a "$file")" "$file" "$TREE/$file"
    done < <(listed)
}

build() {
    local tests=()
    for name in "$@"; do tests+=(--test "$name"); done
    (cd "$TREE" && CARGO_TARGET_DIR=$TARGET/build $CARGO test --locked --no-run "${tests[@]}" 2>&1)
}

# Exit code 0: every test passes, so the mutant survives.
survives() {
    local binary
    for binary in $1; do
        (cd "$TREE" && CARGO_MANIFEST_DIR=$TREE timeout -k 5 "$LIMIT" "$binary" >"$TARGET/output" 2>&1) || return 1
    done
}

why() { grep -m1 -A1 'panicked at' "$TARGET/output" | tail -n1 | cut -c1-100; }

try() {
    local patch=$1 name tests log binaries
    name=$(basename "$patch" .patch)
    read -ra tests < <(sed -n 's/^Tests: //p' "$patch")
    if ! patch -s -f -F0 -p1 -d "$TREE" -i "$patch" >/dev/null; then
        say "$name" stale "the patch does not apply"
        return 1
    fi
    log=$(build "${tests[@]}") || true
    binaries=$(sed -n "s|.*Executable.*(\(.*\))|\1|p" <<<"$log")
    local result=0
    if [[ $(wc -w <<<"$binaries") -ne ${#tests[@]} ]]; then
        say "$name" broken "the tests do not build"
        grep -m3 '^error' <<<"$log" || true
        result=1
    elif survives "$binaries"; then
        say "$name" survived "$(head -n1 "$patch")"
        result=1
    else
        say "$name" caught "$(why)"
    fi
    patch -s -R -f -F0 -p1 -d "$TREE" -i "$patch"
    return "$result"
}

# Tests that fail without any mutant would catch every one.
control() {
    local name tests log binaries
    mapfile -t tests < <(sed -n 's/^Tests: //p' "$@" | tr ' ' '\n' | sort -u)
    log=$(build "${tests[@]}") || true
    binaries=$(sed -n "s|.*Executable.*(\(.*\))|\1|p" <<<"$log")
    [[ $(wc -w <<<"$binaries") -eq ${#tests[@]} ]] || { echo "mutants: the tests do not build as they are" >&2; exit 1; }
    survives "$binaries" || { echo "mutants: the tests fail without any mutant: $(why)" >&2; exit 1; }
}

copy_tree
patches=()
for name in "$@"; do patches+=("$ROOT/tests/mutants/$name.patch"); done
[[ $# -gt 0 ]] || patches=("$ROOT"/tests/mutants/*.patch)
control "${patches[@]}"
failed=0
for patch in "${patches[@]}"; do
    try "$patch" || failed=$((failed + 1))
done
echo "$((${#patches[@]} - failed)) of ${#patches[@]} mutants caught"
[[ $failed -eq 0 ]]
