#!/bin/bash
# One disk image read and written inside one process, without a mount: our engine alone, as the store opens it (locks, and
# the log that outlives a kill), imago, qcow2-rs, `qemu-img bench`, and the raw file that is the limit.
#
#   engine.sh [-r ROUNDS] [-t SECONDS] [-o OUT.json]
#
# The load is target/release/examples/engine (`cargo build --release --example engine`). Each round runs every job with
# every engine that can do it, in another order each time, from the page cache. Prints tables of medians; OUT.json has
# them and every single run.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-io python3 chattr
LOAD=${LOAD:-$(dirname "$COWSHED")/examples/engine}
[ -x "$LOAD" ] || { echo "no $LOAD; build it with \`cargo build --release --example engine\`" >&2; exit 1; }

rounds=3 seconds=1 out=
while getopts r:t:o: option; do
    case $option in r) rounds=$OPTARG ;; t) seconds=$OPTARG ;; o) out=$OPTARG ;; *) exit 2 ;; esac
done
work_folder

noise "$work/noise.raw" 512
truncate -s 2G "$work/empty.raw"
truncate -s 512M "$work/limit.raw"
fill raw "$work/limit.raw" 512 64 64 1
qemu-img convert -O qcow2 "$work/noise.raw" "$work/alone.qcow2"
qemu-img create -q -f qcow2 -F qcow2 -b alone.qcow2 "$work/over.qcow2"
for base in noise empty; do
    "$COWSHED" import "$work/$base.raw" --name "$base" --format raw >/dev/null
    rm "$work/$base.raw"
done
"$COWSHED" clone noise own-wide fresh-wide deep-wide >/dev/null
"$COWSHED" clone --compat noise own-plain fresh-plain deep-plain >/dev/null
for clone in own-wide own-plain; do
    fill qcow2 "$("$COWSHED" path "$clone")" 512 64 64 1
done
for number in $(seq 15); do
    for clone in deep-wide deep-plain; do
        fill qcow2 "$("$COWSHED" path "$clone")" 512 4096 64 "$number"
        "$COWSHED" checkpoint "$clone" >/dev/null
    done
done
sync
export COWSHED LOAD
python3 "$here/engine.py" "$work" "$rounds" "$seconds" "${out:-$root/target/bench-engine.json}"
for clone in own-wide own-plain deep-wide deep-plain; do qemu-img check -q "$("$COWSHED" path "$clone")"; done
