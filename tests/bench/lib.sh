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

# warm MIB: brings so much of each of the store's disks into the host's page cache.
warm() {
    find "$COWSHED_STORE" -name 'disk.*' ! -name disk.log -exec dd if={} of=/dev/null bs=1M "count=$1" status=none \;
}

# fill FORMAT FILE MIB STEP LEN SEED: of each STEP KiB of the first MIB MiB the first LEN KiB, in a scattered order (SEED 0: from the
# first to the last), by writes of at most 64 KiB: the kernel keeps what is written at once in one piece, and changing a bit of a large one is slow.
fill() {
    python3 - "${@:3}" <<'P' | qemu-io -f "$1" -t writeback "$2" >/dev/null
import random, sys
mib, step, length, seed = map(int, sys.argv[1:])
places = list(range(0, mib * 1024, step))
if seed:
    random.Random(seed).shuffle(places)
for place in places:
    for at in range(place, place + length, 64):
        print(f"write -P {at % 250 + 1} {at}k {min(64, length)}k")
P
}

# noise FILE MIB: a raw disk of so many MiB that repeat nothing.
noise() {
    python3 - "$@" <<'P'
import random, sys
random.seed(1)
with open(sys.argv[1], "wb") as disk:
    for _ in range(int(sys.argv[2])):
        disk.write(random.randbytes(1 << 20))
P
}
