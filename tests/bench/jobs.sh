#!/usr/bin/env bash
# Whole jobs beside what people have at hand for them: import, export, compare, verify, commit, fold, a thousand clones, lists, checks.
# All of ours end durable; `cp` and `qemu-img convert` do not, so each has a second contender that syncs its file.
#
#   jobs.sh [-r ROUNDS] [-j JOB,..] [-m MIB] [-o OUT.json]
#
# JOB is a part of a job's name (see jobs.py); MIB are in use on the disks. Each round runs every job with every contender, in another
# order each time. Prints medians, says which aims are missed, and fails when a bound is broken by the best of the rounds: 5 s for 1000
# clones, 300 ms for a list of 10,000, 5 ms to open 1 TiB and 1 s to check it. With BENCH_DIR=/dev/shm no medium is in the way.
. "$(dirname "$0")/lib.sh"
need python3 qemu-img qemu-io

rounds=3 jobs='' mib=256 out=''
while getopts r:j:m:o: option; do
    case $option in r) rounds=$OPTARG ;; j) jobs=$OPTARG ;; m) mib=$OPTARG ;; o) out=$OPTARG ;; *) exit 2 ;; esac
done
out=$(realpath -m "${out:-$root/target/bench-jobs.json}")
COWSHED=$(realpath "$COWSHED")
PATH=$(dirname "$COWSHED"):$PATH
work_folder
image() { "$COWSHED" path "$1"; }

cd "$work"
python3 "$here/disks.py" full.raw sparse.raw "$mib"
"$COWSHED" import sparse.raw --name base --format raw >/dev/null
"$COWSHED" clone base web >/dev/null
fill qcow2 "$(image web)" "$mib" 1024 128 1
# What everybody writes is compared with what QEMU says.
qemu-img convert -f qcow2 -O raw "$(image web)" flat.raw
qemu-img convert -f raw -O qcow2 flat.raw flat.qcow2
qemu-img convert -c -f raw -O qcow2 flat.raw zlib.qcow2
qemu-img convert -c -f raw -O qcow2 -o compression_type=zstd flat.raw zstd.qcow2
"$COWSHED" import flat.raw --name flat --format raw >/dev/null
"$COWSHED" import full.raw --name full --format raw >/dev/null
# Two layers, each as large as an eighth of what is in use.
"$COWSHED" clone base fold >/dev/null
fill qcow2 "$(image fold)" "$mib" 1024 128 2
cp "$(image fold)" lower.qcow2
"$COWSHED" checkpoint fold >/dev/null
fill qcow2 "$(image fold)" "$mib" 1024 128 3
cp "$(image fold)" upper.qcow2
qemu-img convert -f qcow2 -O raw "$(image fold)" folded.raw
FOLD=$(image fold)
"$COWSHED" rm fold >/dev/null

truncate -s 1T large.raw
"$COWSHED" import large.raw --name void --format raw >/dev/null
"$COWSHED" clone void large mapped >/dev/null
python3 "$here/mapped.py" "$(image mapped)"
"$COWSHED" --store crowd import full.raw --name base --format raw >/dev/null
"$COWSHED" --store crowd clone base c --count 10000 >/dev/null

BASE=$(image base) WEB=$(image web) FLAT=$(image flat) FULL=$(image full) LARGE=$(image large) MAPPED=$(image mapped)
export PATH BASE WEB FLAT FULL LARGE MAPPED FOLD
python3 "$here/jobs.py" "$work" "$rounds" "$jobs" "$out"
