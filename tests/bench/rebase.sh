#!/usr/bin/env bash
# Base updates on the disks of tests/tools/merge-case.sh: `keep` beside `qemu-img rebase` on copies of the same clone, and beside
# the bound: as many bytes as the new layer stores, written and synced by `dd`; one contender right after the other, medians of the
# rounds. The same of a fleet: one command here, one run after the other there. The plan of a fleet beside the plans of its clones
# one by one; and a merge of the whole fleet, which must take at most 6 s for a clone, and 300 MiB in one process.
#
# Usage: rebase.sh [-r ROUNDS] [-n CLONES] [-k KEPT] [-o OUT.json]      needs root (a view), a release build, and room for deltas
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
COWSHED=${COWSHED:-$HERE/../../target/release/cowshed}
CASE=${COWSHED_MERGE_CASE:-${XDG_CACHE_HOME:-$HOME/.cache}/cowshed/merge-case}
ROUNDS=3 CLONES=100 KEPT=50 OUT=
while getopts r:n:k:o: option; do
    case $option in
        r) ROUNDS=$OPTARG ;;
        n) CLONES=$OPTARG ;;
        k) KEPT=$OPTARG ;;
        o) OUT=$OPTARG ;;
        *) sed -n '7p' "$0" | cut -c3- >&2; exit 2 ;;
    esac
done
[[ -x $COWSHED && -e $CASE/old.raw ]] || { echo "rebase.sh: run make build and make merge-case first" >&2; exit 1; }

WORK=$(mktemp -d)
export COWSHED_STORE=$WORK/store
cleanup() {
    "$COWSHED" umount "$WORK/view" 2>/dev/null || true
    chattr -R -i "$WORK/store" 2>/dev/null || true
    rm -rf "$WORK"
}
trap cleanup EXIT

# Milliseconds that a command takes.
clock() {
    local start end
    start=$(date +%s%N)
    "$@" >/dev/null
    end=$(date +%s%N)
    echo $(((end - start) / 1000000))
}
median() { printf '%s\n' "$@" | sort -n | sed -n "$((($# + 1) / 2))p"; }

"$COWSHED" import "$CASE/old.raw" --name deb >/dev/null
"$COWSHED" import --update deb "$CASE/new.raw" >/dev/null
"$COWSHED" clone deb@1 web >/dev/null
mkdir "$WORK/view"
"$COWSHED" mount "$WORK/view" >/dev/null
python3 "$HERE/become.py" "$CASE/old.raw" "$CASE/clone.raw" "$WORK/view/clones/web.raw"
"$COWSHED" umount "$WORK/view" >/dev/null
"$COWSHED" check web >/dev/null
rmdir "$WORK/view"
DELTA=$WORK/delta.qcow2
cp "$COWSHED_STORE/clones/web/disk.qcow2" "$DELTA"

# A folder in which the same relative names lead to the same bases.
mkdir -p "$WORK/qemu/clones/web"
ln -s "$COWSHED_STORE/bases" "$WORK/qemu/bases"
# What qemu-img does, and what it does with its file synced for certain.
qemu_keep() { qemu-img rebase -f qcow2 -b ../../bases/deb/2/disk.qcow2 -F qcow2 "$1"; }
qemu_keep_synced() { qemu_keep "$1" && sync "$1"; }
# The bytes of a new layer without its holes, as a file of noise: holes and zeros would cost less.
noise_like() { head -c "$(($(stat -c '%b' "$1") * 512))" /dev/urandom >"$2"; }
write_synced() { dd "if=$WORK/noise" "of=$1" bs=4M conv=fsync status=none; }

ours=() theirs=() synced=() bound=()
for _ in $(seq "$ROUNDS"); do
    for contender in qemu_keep qemu_keep_synced; do
        cp "$DELTA" "$WORK/qemu/clones/web/disk.qcow2"
        sync -f "$WORK"
        took=$(clock "$contender" "$WORK/qemu/clones/web/disk.qcow2")
        if [[ $contender == qemu_keep ]]; then theirs+=("$took"); else synced+=("$took"); fi
    done
    sync -f "$WORK"
    ours+=("$(clock "$COWSHED" rebase web --onto deb@2 --strategy keep)")
    qemu-img compare -q "$WORK/qemu/clones/web/disk.qcow2" "$COWSHED_STORE/clones/web/disk.qcow2"
    [[ -e $WORK/noise ]] || noise_like "$COWSHED_STORE/clones/web/disk.qcow2" "$WORK/noise"
    sync -f "$WORK"
    bound+=("$(clock write_synced "$WORK/written")")
    rm "$WORK/written"
    "$COWSHED" rm web >/dev/null
    "$COWSHED" clone deb@1 web >/dev/null
    cp "$DELTA" "$COWSHED_STORE/clones/web/disk.qcow2"
done
OURS=$(median "${ours[@]}") THEIRS=$(median "${theirs[@]}") SYNCED=$(median "${synced[@]}") BOUND=$(median "${bound[@]}")

# A fleet: all contenders do the same clones once.
qemu_keep_all() { for number in $(seq "$KEPT"); do qemu_keep "$WORK/qemu/clones/$number/disk.qcow2"; done; }
write_all() { for number in $(seq "$KEPT"); do write_synced "$WORK/qemu/clones/$number/written"; done; }
for number in $(seq "$KEPT"); do
    mkdir "$WORK/qemu/clones/$number"
    cp "$DELTA" "$WORK/qemu/clones/$number/disk.qcow2"
done
sync -f "$WORK"
QEMU_ALL=$(clock qemu_keep_all)
for number in $(seq "$KEPT"); do rm "$WORK/qemu/clones/$number/disk.qcow2"; done
sync -f "$WORK"
BOUND_ALL=$(clock write_all)
rm -r "$WORK/qemu/clones"/[0-9]*
"$COWSHED" clone deb@1 kept --count "$KEPT" >/dev/null
for clone in "$COWSHED_STORE"/clones/kept-*; do cp "$DELTA" "$clone/disk.qcow2"; done
sync -f "$WORK"
KEEP_ALL=$(clock "$COWSHED" rebase --all --only 'kept-*' --onto deb@2 --strategy keep)
for number in $(seq "$KEPT"); do "$COWSHED" rm "kept-$number" >/dev/null; done

"$COWSHED" rm web >/dev/null
"$COWSHED" clone deb@1 fleet --count "$CLONES" >/dev/null
for clone in "$COWSHED_STORE"/clones/fleet-*; do cp "$DELTA" "$clone/disk.qcow2"; done
sync -f "$WORK"
printf 'clone /data/**\n' >"$WORK/rules"
# Milliseconds of processor time: of one plan for twenty clones, and of twenty plans for one.
read -r TOGETHER APART < <(python3 - "$COWSHED" "$WORK/rules" "$CLONES" "$ROUNDS" <<'PY'
import resource, statistics, subprocess, sys
def used(*commands):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for which in commands:
        command = [sys.argv[1], "rebase", *which, "--onto", "deb@2", "--rules", sys.argv[2], "--plan"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1000 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
clones = [f"fleet-{number}" for number in range(1, min(20, int(sys.argv[3])) + 1)]
rounds = [(used(clones), used(*[[clone] for clone in clones])) for _ in range(int(sys.argv[4]))]
print(*(round(statistics.median(column)) for column in zip(*rounds)))
PY
)
read -r FLEET PEAK < <(python3 - "$COWSHED" "$WORK/rules" <<'PY'
import resource, subprocess, sys, time
start = time.monotonic()
command = [sys.argv[1], "rebase", "--all", "--onto", "deb@2", "--rules", sys.argv[2]]
subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
print(round(time.monotonic() - start), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
PY
)
cat <<TEXT
keep, one clone: cowshed $OURS ms, qemu-img rebase $THEIRS ms (and sync: $SYNCED ms), ratio $(awk "BEGIN { printf \"%.2f\", $THEIRS / $OURS }"); writing as many bytes, synced: $BOUND ms
keep, $KEPT clones: cowshed $KEEP_ALL ms, qemu-img rebase $QEMU_ALL ms, ratio $(awk "BEGIN { printf \"%.2f\", $QEMU_ALL / $KEEP_ALL }"); writing as many bytes, synced: $BOUND_ALL ms
plan, up to 20 clones: $TOGETHER ms of CPU together, $APART ms one by one, ratio $(awk "BEGIN { printf \"%.2f\", $APART / $TOGETHER }")
merge of $CLONES clones: $FLEET s, at most $PEAK MiB in one process
TEXT
if [[ -n $OUT ]]; then
    printf '{"keep_ms": %s, "qemu_rebase_ms": %s, "qemu_rebase_synced_ms": %s, "written_ms": %s, "kept": %s, "keep_fleet_ms": %s, "qemu_fleet_ms": %s, "written_fleet_ms": %s, "plan_ms": %s, "plan_apart_ms": %s, "fleet": %s, "fleet_s": %s, "peak_mib": %s}\n' \
        "$OURS" "$THEIRS" "$SYNCED" "$BOUND" "$KEPT" "$KEEP_ALL" "$QEMU_ALL" "$BOUND_ALL" "$TOGETHER" "$APART" "$CLONES" "$FLEET" "$PEAK" >"$OUT"
fi
if ((FLEET > 6 * CLONES || PEAK > 300)); then
    echo "rebase.sh: the fleet took $FLEET s and $PEAK MiB; at most $((6 * CLONES)) s and 300 MiB are allowed" >&2
    exit 1
fi
