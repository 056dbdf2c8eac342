#!/bin/bash
# Reads and writes of a clone by vhost-user-blk: our server; qemu-storage-daemon with the same qcow2 chain; and
# qemu-storage-daemon with the clone's file in a view, which is what a virtio disk on a view is without its guest.
#
#   vhost.sh [-r ROUNDS] [-t SECONDS] [-j JOBS] [-o OUT.json]
#
# JOBS are jobs' names, all of them without it.
# The load is target/release/examples/vhost_load, a driver without a guest (`cargo build --release --example vhost_load`):
# 1, 2 and 4 queues with 8 requests under way in each, and one queue with a single one. Each round runs every job on
# all three, in another order each time. Prints a table of medians; OUT.json has them and every single run.
. "$(dirname "$0")/lib.sh"
need qemu-storage-daemon qemu-img python3 mountpoint
LOAD=${LOAD:-$(dirname "$COWSHED")/examples/vhost_load}
[ -x "$LOAD" ] || { echo "no $LOAD; build it with \`cargo build --release --example vhost_load\`" >&2; exit 1; }

rounds=3 seconds=2 out=
jobs="read-own-4k read-base-4k read-base-1m write-own-4k write-own-64k write-new-4k"
while getopts r:t:o:j: option; do
    case $option in r) rounds=$OPTARG ;; t) seconds=$OPTARG ;; o) out=$OPTARG ;; j) jobs=$OPTARG ;; *) exit 2 ;; esac
done
work_folder
out=${out:-$root/target/bench-vhost.json}
runs=$work/runs.jsonl
socket=$work/socket
mib=$((1 << 20))

export_by_qemu() { # BLOCKDEV ...
    qemu-storage-daemon "$@" --export \
        "type=vhost-user-blk,id=e,node-name=top,addr.type=unix,addr.path=$socket,writable=on,num-queues=$queues" &
    export_pid=$!
}

up() { # CONTENDER CLONE
    rm -f "$socket"
    local image
    case $1 in
        cowshed)
            "$COWSHED" serve "$2" --vhost-user "$socket" 2>/dev/null &
            export_pid=$!
            ;;
        qemu)
            image=$("$COWSHED" path "$2")
            export_by_qemu --blockdev \
                "driver=qcow2,node-name=top,discard=unmap,file.driver=file,file.filename=$image,file.aio=threads,file.discard=unmap"
            ;;
        view)
            "$COWSHED" mount "$work/view" >/dev/null
            export_by_qemu --blockdev \
                "driver=raw,node-name=top,discard=unmap,detect-zeroes=unmap,cache.direct=on,file.driver=file,file.filename=$work/view/clones/$2.raw,file.aio=threads,file.cache.direct=on,file.discard=unmap"
            ;;
    esac
    for _ in $(seq 500); do
        # A moment more, for the socket has its path before it listens.
        [ -S "$socket" ] && sleep 0.05 && return
        kill -0 "$export_pid" || { echo "the server of $1 ended" >&2; exit 1; }
        sleep 0.01
    done
    echo "$1 serves nothing" >&2
    exit 1
}

down() { # CONTENDER
    kill "$export_pid"
    wait "$export_pid" || true
    export_pid=
    [ "$1" != view ] || "$COWSHED" umount "$work/view" >/dev/null
}

# Where each job works: own blocks, the base's, or blocks nobody has written.
job() { # NAME -> kind, block, from, to
    case $1 in
        read-own-4k) echo "read 4096 0 $((128 * mib))" ;;
        read-base-4k) echo "read 4096 $((128 * mib)) $((256 * mib))" ;;
        read-base-1m) echo "read $mib $((128 * mib)) $((256 * mib))" ;;
        write-own-4k) echo "write 4096 0 $((128 * mib))" ;;
        write-own-64k) echo "write 65536 0 $((128 * mib))" ;;
        write-new-4k) echo "write 4096 $((256 * mib)) $((512 * mib))" ;;
    esac
}

one_run() { # ROUND JOB QUEUES DEPTH CONTENDER
    local clone=bench plain=plain result
    queues=$3
    case $2 in
        write-new*) clone=fresh-$1-$3-$4-$5; "$COWSHED" clone base "$clone" >/dev/null ;;
    esac
    [ "$5" != cowshed ] || plain=
    warm 512
    up "$5" "$clone"
    # shellcheck disable=SC2046,SC2086
    result=$("$LOAD" "$socket" $(job "$2") "$3" "$4" "$seconds" $plain)
    down "$5"
    [ "$clone" = bench ] || { qemu-img check -q "$("$COWSHED" path "$clone")"; "$COWSHED" rm "$clone" >/dev/null; }
    python3 "$here/vhost.py" line "$result" "$2" "$3" "$4" "$5" "$1" | tee -a "$runs"
}

mkdir "$work/view"
noise "$work/base.raw" 512
"$COWSHED" import "$work/base.raw" --name base --format raw >/dev/null
rm "$work/base.raw"
"$COWSHED" clone base bench >/dev/null
image=$("$COWSHED" path bench)
fill qcow2 "$image" 128 64 64 7

orders=("cowshed qemu view" "view cowshed qemu" "qemu view cowshed")
for round in $(seq "$rounds"); do
    for name in $jobs; do
        for shape in "1 1" "1 8" "2 8" "4 8"; do
            for contender in ${orders[$((round % 3))]}; do
                # shellcheck disable=SC2086
                one_run "$round" "$name" $shape "$contender"
            done
        done
    done
done
qemu-img check -q "$image"
python3 "$here/vhost.py" table "$runs" "$out"
