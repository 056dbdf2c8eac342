#!/usr/bin/env bash
# What clones take up: host bytes of 1000 clones of a sparse base of 100 GiB, and of 8000 first-touch writes of 4 KiB; memory of a view
# with 100 of them open and written to. How long they take is in jobs.sh.
#
#   clones.sh [-n CLONES] [-o OUT.json]
#
# Fails when a bound is broken: 200 KiB of host blocks for each clone, 34 MB for the writes, 200 MiB for the view.
. "$(dirname "$0")/lib.sh"
need python3 fio qemu-img mountpoint

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
"$COWSHED" import "$work/base.raw" --name base --format raw >/dev/null
before=$(host_bytes "$COWSHED_STORE")
"$COWSHED" clone base c --count "$clones" >/dev/null
after=$(host_bytes "$COWSHED_STORE")
bytes=$(per $((after - before)) "$clones")
bound "host bytes for each clone, manifest included" "$bytes" 204800

mkdir "$work/view"
"$COWSHED" mount --foreground "$work/view" &
export_pid=$!
until mountpoint -q "$work/view"; do sleep 0.05; done
fio --name=touch --filename="$work/view/clones/c-1.raw" --direct=1 --ioengine=psync --rw=write:124k --bs=4k \
    --offset=2g --size=1000m --number_ios=8000 --output-format=json >"$work/fio.json"
count=$(python3 -c "import json; text=open('$work/fio.json').read(); print(json.loads(text[text.index('{'):])['jobs'][0]['write']['total_ios'])")
[ "$count" = 8000 ] || { echo "fio made $count writes, not 8000" >&2; exit 1; }

# A hundred places of a hundred clones, all over the disk, read and written.
open=$((clones - 1 < 100 ? clones - 1 : 100))
mib=$(python3 - "$work/view/clones" "$open" "$export_pid" <<'P'
import os, random, sys
places, folder = random.Random(1), sys.argv[1]
files = [os.open(f"{folder}/c-{number + 2}.raw", os.O_RDWR) for number in range(int(sys.argv[2]))]
for file in files:
    for _ in range(100):
        at = places.randrange(100 << 18) << 12
        assert len(os.pread(file, 4096, at)) == 4096 and os.pwrite(file, b"x" * 4096, at) == 4096
with open(f"/proc/{sys.argv[3]}/status") as status:
    print(next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmRSS")))
P
)
bound "MiB of a view with $open clones open" "$mib" 200
"$COWSHED" umount "$work/view" >/dev/null
wait "$export_pid"
export_pid=
touched=$(host_bytes "$("$COWSHED" path c-1)")
bound "host bytes after 8000 first touches of 4 KiB" "$touched" 34000000
qemu-img check -q "$("$COWSHED" path c-1)"

mkdir -p "$(dirname "$out")"
python3 - "$out" <<P
import json, sys
json.dump({"clones": $clones, "clone_host_bytes": $bytes, "open": $open, "view_mib": $mib, "first_touch_host_bytes": $touched}, open(sys.argv[1], "w"), indent=1)
P
echo "all numbers in $out"
exit "$failed"
