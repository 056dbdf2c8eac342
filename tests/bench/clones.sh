#!/bin/bash
# What clones cost: 1000 clones of a sparse base of 100 GiB, `list` of them, and 8000 first-touch writes of 4 KiB.
#
#   clones.sh [-n CLONES] [-o OUT.json]
#
# Fails when a bound is broken: 5 ms and 200 KiB of host blocks for each clone, 100 ms for `list`, 34 MB for the writes.
. "$(dirname "$0")/lib.sh"
need python3 fio mountpoint

clones=1000 out=
while getopts n:o: option; do
    case $option in n) clones=$OPTARG ;; o) out=$OPTARG ;; *) exit 2 ;; esac
done
work_folder
out=${out:-$root/target/bench-clones.json}
failed=0

bound() { # WHAT VALUE MOST
    local verdict=ok
    python3 -c "import sys; sys.exit(not float('$2') <= float('$3'))" || { verdict="TOO MUCH"; failed=1; }
    printf '%-52s %14s  at most %12s  %s\n' "$1" "$2" "$3" "$verdict"
}
per() { python3 -c "print(round($1 / $2, 3))"; }

truncate -s 100G "$work/base.raw"
dd if=/dev/urandom of="$work/base.raw" bs=1M count=64 seek=1000 conv=notrunc status=none
start=$(now_ms)
"$COWSHED" import "$work/base.raw" --name base --format raw >/dev/null
import_ms=$(($(now_ms) - start))
echo "import of a sparse 100 GiB base: $import_ms ms"

before=$(host_bytes "$COWSHED_STORE")
start=$(now_ms)
"$COWSHED" clone base c --count "$clones" >/dev/null
together=$(per $(($(now_ms) - start)) "$clones")
after=$(host_bytes "$COWSHED_STORE")
bytes=$(per $((after - before)) "$clones")
bound "ms for each of $clones clones made by one command" "$together" 5
bound "host bytes for each clone, manifest included" "$bytes" 204800

start=$(now_ms)
for number in $(seq 20); do "$COWSHED" clone base "single-$number" >/dev/null; done
alone=$(per $(($(now_ms) - start)) 20)
echo "ms for a clone made by a command of its own, start of the program included: $alone"

best=1000000
for _ in 1 2 3 4 5; do
    start=${EPOCHREALTIME/./}
    "$COWSHED" list >"$work/list.txt"
    took=$((${EPOCHREALTIME/./} - start))
    [ "$took" -lt "$best" ] && best=$took
done
[ "$(grep -c '\bc-[0-9]' "$work/list.txt")" = "$clones" ] || { echo "list does not show $clones clones" >&2; exit 1; }
list_ms=$(per "$best" 1000)
bound "ms for list of $((clones + 20)) clones, best of 5" "$list_ms" 100

mkdir "$work/view"
"$COWSHED" mount "$work/view" >/dev/null
fio --name=touch --filename="$work/view/clones/c-1.raw" --direct=1 --ioengine=psync --rw=write:124k --bs=4k \
    --offset=2g --size=1000m --number_ios=8000 --output-format=json >"$work/fio.json"
"$COWSHED" umount "$work/view" >/dev/null
writes=$(python3 "$here/medians.py" line "$work/fio.json" touch 1 cowshed 1)
count=$(python3 -c "import json; text=open('$work/fio.json').read(); print(json.loads(text[text.index('{'):])['jobs'][0]['write']['total_ios'])")
[ "$count" = 8000 ] || { echo "fio made $count writes, not 8000" >&2; exit 1; }
touched=$(host_bytes "$("$COWSHED" path c-1)")
bound "host bytes after 8000 first touches of 4 KiB" "$touched" 34000000
qemu-img check -q "$("$COWSHED" path c-1)"

mkdir -p "$(dirname "$out")"
python3 - "$out" <<P
import json, sys
json.dump({"clones": $clones, "import_ms": $import_ms, "clone_ms": $together, "clone_host_bytes": $bytes, "clone_alone_ms": $alone,
           "list_ms": $list_ms, "first_touch_host_bytes": $touched, "first_touch": $writes}, open(sys.argv[1], "w"), indent=1)
P
echo "all numbers in $out"
exit "$failed"
