#!/bin/bash
# Reads and writes of a clone through the view, beside qemu-storage-daemon's FUSE export of the same qcow2 chain, beside a FUSE
# server that does nothing but pread and pwrite on a raw file, and beside that raw file itself.
#
#   view.sh [-r ROUNDS] [-t SECONDS] [-j JOBS] [-o OUT.json]
#
# JOBS is a part of the jobs' names (see view.py). Each round runs every job with every contender, in another order each
# time. Prints tables of medians, and says which aims are missed; OUT.json has them and every single run. The view and the bare
# server are measured over io_uring too where the kernel has that switched on (fuse's enable_uring). The bare server
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

# A GiB of noise, and behind it nothing up to 4 GiB.
mkdir "$work/view" "$work/bare"
noise "$work/base.raw" 1024
truncate -s 4G "$work/base.raw"
truncate -s 4G "$work/limit.raw"
fill raw "$work/limit.raw" 1024 64 64 1
"$COWSHED" import "$work/base.raw" --name base --format raw >/dev/null
rm "$work/base.raw"
"$COWSHED" clone base fresh own laid part four chain >/dev/null
image() { "$COWSHED" path "$1"; }
fill qcow2 "$(image own)" 1024 64 64 1
fill qcow2 "$(image laid)" 1024 64 64 0
fill qcow2 "$(image part)" 1024 256 64 2
# A clone of so many layers with data, its base counted.
layers() {
    local number
    for number in $(seq $(($2 - 1))); do
        fill qcow2 "$(image "$1")" 1024 4096 64 "$number"
        "$COWSHED" checkpoint "$1" >/dev/null
    done
}
layers four 4
layers chain 16
sync
export COWSHED BARE
python3 "$here/view.py" "$work" "$rounds" "$seconds" "$jobs" "${out:-$root/target/bench-view.json}"
for clone in fresh own laid part four chain; do qemu-img check -q "$(image "$clone")"; done
