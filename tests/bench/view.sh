#!/bin/bash
# Reads and writes of a clone through the view, beside qemu-storage-daemon's FUSE export of the same qcow2 chain, beside a FUSE
# server that does nothing but pread and pwrite on a raw file, and beside that raw file itself.
#
#   view.sh [-r ROUNDS] [-t SECONDS] [-j JOBS] [-o OUT.json]
#
# JOBS is a part of the jobs' names (see view.py). Each round runs every job with every contender, in another order each
# time. Prints tables of medians, and says which aims are missed; OUT.json has them and every single run. The bare server
# is target/release/examples/bare (`cargo build --release -p fuse-mount --example bare`).
. "$(dirname "$0")/lib.sh"
need fio qemu-storage-daemon qemu-img qemu-io python3 mountpoint
BARE=${BARE:-$(dirname "$COWSHED")/examples/bare}
[ -x "$BARE" ] || { echo "no $BARE; build it with \`cargo build --release -p fuse-mount --example bare\`" >&2; exit 1; }

rounds=3 seconds=2 out='' jobs=''
while getopts r:t:o:j: option; do
    case $option in r) rounds=$OPTARG ;; t) seconds=$OPTARG ;; o) out=$OPTARG ;; j) jobs=$OPTARG ;; *) exit 2 ;; esac
done
work_folder

fill() { # CLONE MIB-OF-EACH-4 SEED: writes the first so many of each 4 MiB of the disk's first GiB
    python3 - "$2" "$3" >"$work/commands" <<'P'
import random, sys
places = list(range(256))
random.Random(int(sys.argv[2])).shuffle(places)
for place in places:
    print(f"write -P {place % 250 + 1} {place * 4}M {sys.argv[1]}")
P
    qemu-io -f qcow2 -t writeback "$("$COWSHED" path "$1")" <"$work/commands" >/dev/null
}

# A GiB of noise, and behind it nothing up to 4 GiB.
mkdir "$work/view" "$work/bare"
python3 - "$work/base.raw" <<'P'
import random, sys
random.seed(1)
with open(sys.argv[1], "wb") as disk:
    for _ in range(1024):
        disk.write(random.randbytes(1 << 20))
    disk.truncate(4 << 30)
P
cp --sparse=always "$work/base.raw" "$work/limit.raw"
"$COWSHED" import "$work/base.raw" --name base --format raw >/dev/null
rm "$work/base.raw"
"$COWSHED" clone base fresh own part chain >/dev/null
fill own 4M 1
fill part 1M 2
for number in $(seq 15); do
    fill chain 64k "$number"
    "$COWSHED" checkpoint chain >/dev/null
done
export COWSHED BARE
python3 "$here/view.py" "$work" "$rounds" "$seconds" "$jobs" "${out:-$root/target/bench-view.json}"
for clone in fresh own part chain; do qemu-img check -q "$("$COWSHED" path "$clone")"; done
