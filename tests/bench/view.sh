#!/bin/bash
# Reads and writes of a clone through the view, beside qemu-storage-daemon's FUSE export of the same clone.
#
#   view.sh [-r ROUNDS] [-t SECONDS] [-o OUT.json]
#
# Each round runs every job on both, one right after the other, first one first and then the other one first. A job is
# fio with O_DIRECT on the exported file, by one thread and by four; both servers use the host's page cache. Prints a
# table of medians; OUT.json has them, the ratios and every single run.
. "$(dirname "$0")/lib.sh"
need fio qemu-storage-daemon python3 mountpoint

rounds=3 seconds=3 out=
while getopts r:t:o: option; do
    case $option in r) rounds=$OPTARG ;; t) seconds=$OPTARG ;; o) out=$OPTARG ;; *) exit 2 ;; esac
done
work_folder
out=${out:-$root/target/bench-view.json}
runs=$work/runs.jsonl
own=256m            # part of the clone that holds its own blocks before the runs
disk=1g

up() { # CONTENDER CLONE -> target
    case $1 in
        cowshed)
            "$COWSHED" mount "$work/view" >/dev/null
            target=$work/view/clones/$2.raw
            ;;
        qemu)
            target=$work/export.raw
            : >"$target"
            local image
            image=$("$COWSHED" path "$2")
            qemu-storage-daemon \
                --blockdev "driver=qcow2,node-name=top,discard=unmap,file.driver=file,file.filename=$image,file.aio=threads,file.discard=unmap" \
                --export "type=fuse,id=e,node-name=top,mountpoint=$target,writable=on,allow-other=off" &
            export_pid=$!
            for _ in $(seq 500); do
                [ "$(stat -f -c %T "$target")" = fuseblk ] && return
                kill -0 "$export_pid" || { echo "qemu-storage-daemon ended" >&2; exit 1; }
                sleep 0.01
            done
            echo "qemu-storage-daemon exports nothing" >&2
            exit 1
            ;;
    esac
}

down() { # CONTENDER
    case $1 in
        cowshed) "$COWSHED" umount "$work/view" >/dev/null ;;
        qemu) kill "$export_pid"; wait "$export_pid" || true; export_pid= ;;
    esac
}

# Where each job works: own blocks, the base's blocks, or blocks nobody has written.
job() { # NAME THREADS -> fio arguments
    local span=$((256 / $2))m
    case $1 in
        read-own-4k) echo "--rw=randread --bs=4k --offset=0 --size=$own" ;;
        read-base-4k) echo "--rw=randread --bs=4k --offset=$own --size=$own" ;;
        read-base-1m) echo "--rw=read --bs=1m --offset=$own --size=$span --offset_increment=$span" ;;
        write-own-4k) echo "--rw=randwrite --bs=4k --offset=0 --size=$own --norandommap" ;;
        write-own-64k) echo "--rw=randwrite --bs=64k --offset=0 --size=$own --norandommap" ;;
        write-new-4k) echo "--rw=randwrite --bs=4k --offset=512m --size=512m --norandommap" ;;
    esac
}
jobs="read-own-4k read-base-4k read-base-1m write-own-4k write-own-64k write-new-4k"

one_run() { # ROUND JOB THREADS CONTENDER
    local clone=bench
    case $2 in
        write-new*) clone=fresh-$1-$3-$4; "$COWSHED" clone base "$clone" >/dev/null ;;
    esac
    up "$4" "$clone"
    # shellcheck disable=SC2046
    fio --name=job --filename="$target" --direct=1 --ioengine=psync --thread --numjobs="$3" --group_reporting \
        --time_based --runtime="$seconds" --randseed="$1" --output-format=json $(job "$2" "$3") >"$work/fio.json"
    down "$4"
    python3 "$here/medians.py" line "$work/fio.json" "$2" "$3" "$4" "$1" >>"$runs"
    tail -1 "$runs"
}

mkdir "$work/view"
python3 - "$work/base.raw" <<'P'
import random, sys
random.seed(1)
with open(sys.argv[1], "wb") as disk:
    for _ in range(1024):
        disk.write(random.randbytes(1 << 20))
P
"$COWSHED" import "$work/base.raw" --name base --format raw >/dev/null
rm "$work/base.raw"
"$COWSHED" clone base bench >/dev/null
up cowshed bench
fio --name=fill --filename="$target" --direct=1 --ioengine=psync --rw=randwrite --bs=64k --size=$own --randseed=7 \
    --output-format=json >/dev/null
down cowshed

for round in $(seq "$rounds"); do
    order="cowshed qemu"
    [ $((round % 2)) = 0 ] && order="qemu cowshed"
    for name in $jobs; do
        for threads in 1 4; do
            for contender in $order; do one_run "$round" "$name" "$threads" "$contender"; done
        done
    done
done
qemu-img check -q "$("$COWSHED" path bench)"
python3 "$here/medians.py" table "$runs" "$out"
