# Sourced by the benchmarks of this folder. COWSHED gives the binary; BENCH_DIR the folder for big files.
# shellcheck shell=bash
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
COWSHED=${COWSHED:-${CARGO_TARGET_DIR:-$root/target}/release/cowshed}
[ -x "$COWSHED" ] || { echo "no $COWSHED; build it with \`cargo build --release\`" >&2; exit 1; }

need() {
    local tool
    for tool; do
        command -v "$tool" >/dev/null || { echo "$tool is missing; install it first" >&2; exit 1; }
    done
}

# A folder of our own, gone at the end with what is mounted in it.
work_folder() {
    work=$(mktemp -d "${BENCH_DIR:-${TMPDIR:-/tmp}}/cowshed-bench.XXXXXX")
    export COWSHED_STORE=$work/store
    trap clean_up EXIT
}

clean_up() {
    [ -n "${export_pid:-}" ] && kill "$export_pid" 2>/dev/null && wait "$export_pid" 2>/dev/null
    mountpoint -q "$work/view" 2>/dev/null && "$COWSHED" umount "$work/view" >/dev/null
    # Sealed bases may carry the immutable attribute.
    find "$work" -path '*/bases/*' -type f -exec chattr -i {} + 2>/dev/null || true
    rm -rf --one-file-system "$work"
}

now_ms() { local t=${EPOCHREALTIME/./}; echo $((t / 1000)); }

host_bytes() { du -s --block-size=1 "$1" | cut -f1; }
