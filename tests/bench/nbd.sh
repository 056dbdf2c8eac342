#!/bin/bash
# Reads and writes of a clone by NBD over a Unix socket: our server, and qemu-nbd with the same qcow2 chain.
#
#   nbd.sh [-r ROUNDS] [-o OUT.json]
#
# The load is `qemu-img bench`: 4 KiB in strides, one request at a time and 32; and 1 MiB. Each round runs every job on both, in
# another order each time. Prints a table of medians; OUT.json has them and every single run.
. "$(dirname "$0")/lib.sh"
need qemu-nbd qemu-img qemu-io python3

rounds=3 out=
while getopts r:o: option; do
    case $option in r) rounds=$OPTARG ;; o) out=$OPTARG ;; *) exit 2 ;; esac
done
work_folder
out=${out:-$root/target/bench-nbd.json}
runs=$work/runs.jsonl
socket=$work/socket
uri="nbd+unix:///?socket=$socket"
mib=$((1 << 20))

up() { # CONTENDER CLONE
    rm -f "$socket"
    case $1 in
        cowshed) "$COWSHED" serve "$2" --nbd "$socket" 2>/dev/null & ;;
        qemu) qemu-nbd --persistent --shared=0 --format=qcow2 --aio=threads --discard=unmap --socket="$socket" \
            "$("$COWSHED" path "$2")" & ;;
    esac
    export_pid=$!
    for _ in $(seq 500); do
        qemu-img info -f raw "$uri" >/dev/null 2>&1 && return
        kill -0 "$export_pid" || { echo "the server of $1 ended" >&2; exit 1; }
        sleep 0.01
    done
    echo "$1 serves nothing" >&2
    exit 1
}

down() {
    kill "$export_pid"
    wait "$export_pid" || true
    export_pid=
}

# What each job does: requests, depth, bytes, step, first byte, and more.
job() { # NAME
    case $1 in
        read-own-4k-1) echo "-c 20000 -d 1 -s 4096 -S 36864 -o 0" ;;
        read-own-4k-32) echo "-c 60000 -d 32 -s 4096 -S 36864 -o 0" ;;
        read-base-4k-1) echo "-c 20000 -d 1 -s 4096 -S 36864 -o $((128 * mib))" ;;
        read-base-4k-32) echo "-c 60000 -d 32 -s 4096 -S 36864 -o $((128 * mib))" ;;
        read-base-1m-1) echo "-c 120 -d 1 -s $mib -o $((128 * mib))" ;;
        read-base-1m-8) echo "-c 120 -d 8 -s $mib -o $((128 * mib))" ;;
        read-hole-1m-8) echo "-c 1000 -d 8 -s $mib -o $((256 * mib))" ;;
        write-own-4k-1) echo "-w -c 10000 -d 1 -s 4096 -S 36864 -o 0" ;;
        write-own-4k-32) echo "-w -c 30000 -d 32 -s 4096 -S 36864 -o 0" ;;
        write-own-1m-8) echo "-w -c 500 -d 8 -s $mib -o 0" ;;
        write-new-4k-32) echo "-w -c 8000 -d 32 -s 4096 -S 135168 -o $((256 * mib))" ;;
    esac
}
jobs="read-own-4k-1 read-own-4k-32 read-base-4k-1 read-base-4k-32 read-base-1m-1 read-base-1m-8 read-hole-1m-8 \
    write-own-4k-1 write-own-4k-32 write-own-1m-8 write-new-4k-32"

one_run() { # ROUND JOB CONTENDER
    local clone=bench said
    case $2 in
        write-new*) clone=fresh-$1-$3; "$COWSHED" clone base "$clone" >/dev/null ;;
    esac
    warm 256
    up "$3" "$clone"
    # shellcheck disable=SC2046
    said=$(qemu-img bench -f raw -t none $(job "$2") "$uri")
    down
    [ "$clone" = bench ] || { qemu-img check -q "$("$COWSHED" path "$clone")"; "$COWSHED" rm "$clone" >/dev/null; }
    python3 "$here/nbd.py" line "$said" "$(job "$2")" "$2" "$3" "$1" | tee -a "$runs"
}

noise "$work/base.raw" 256
truncate -s 2G "$work/base.raw"
"$COWSHED" import "$work/base.raw" --name base --format raw >/dev/null
rm "$work/base.raw"
"$COWSHED" clone base bench >/dev/null
image=$("$COWSHED" path bench)
fill qcow2 "$image" 128 64 64 7

orders=("cowshed qemu" "qemu cowshed")
for round in $(seq "$rounds"); do
    for name in $jobs; do
        for contender in ${orders[$((round % 2))]}; do
            one_run "$round" "$name" "$contender"
        done
    done
done
qemu-img check -q "$image"
python3 "$here/nbd.py" table "$runs" "$out"
