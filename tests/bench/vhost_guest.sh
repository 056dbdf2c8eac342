#!/bin/bash
# A real guest of `cowshed run`, with its disk in a view and by vhost-user: microseconds for a request, as dd in the guest sees
# them, and seconds from start to power-off.
#
#   vhost_guest.sh [-r ROUNDS] [-c CPUS]
#
# The guest is the one that tests/tools/guest-image.sh builds. Rounds take turns which way comes first.
. "$(dirname "$0")/lib.sh"
need qemu-system-x86_64 python3 base64
guest=${COWSHED_GUEST:-${XDG_CACHE_HOME:-$HOME/.cache}/cowshed/guest}
[ -f "$guest/disk.raw" ] || { echo "no guest image in $guest; run tests/tools/guest-image.sh" >&2; exit 1; }

rounds=3 cpus=1
while getopts r:c: option; do
    case $option in r) rounds=$OPTARG ;; c) cpus=$OPTARG ;; *) exit 2 ;; esac
done
work_folder

job='
t() {
    name=$1 count=$2; shift 2
    start=$(date +%s%N); dd "$@" count=$count status=none; end=$(date +%s%N)
    echo "time $name $(((end - start) / 1000 / count))"
}
t write-zeros-4k 3000 if=/dev/zero of=/srv/f bs=4k oflag=direct
tr "\0" x < /dev/zero | head -c 64M > /srv/x; sync
t write-new-4k 3000 if=/srv/x of=/srv/g bs=4k oflag=direct
t write-own-4k 3000 if=/srv/x of=/srv/g bs=4k oflag=direct conv=notrunc
t read-4k 4000 if=/srv/x of=/dev/null bs=4k iflag=direct
t read-1m 64 if=/srv/x of=/dev/null bs=1M iflag=direct
t write-1m 64 if=/srv/x of=/srv/h bs=1M oflag=direct
t flush 100 if=/srv/x of=/srv/i bs=4k oflag=direct,sync
'
append="$(cat "$guest/cmdline") cowshed.run=$(base64 -w0 <<<"$job")"
"$COWSHED" import "$guest/disk.raw" --name deb --format raw >/dev/null

one_run() { # ROUND WAY
    local clone=$2-$1 start
    "$COWSHED" clone deb "$clone" >/dev/null
    start=$(now_ms)
    "$COWSHED" run "$clone" --disk "$2" --cpus "$cpus" --memory 512M --serial "file:$work/console" \
        --kernel "$guest/vmlinux" --initrd "$guest/initrd.img" --append "$append" 2>/dev/null
    echo "$2 whole-run-ms $(($(now_ms) - start))" >>"$work/times"
    grep -q 'cowshed-job: exit 0' "$work/console" || { cat "$work/console" >&2; exit 1; }
    sed -n "s/^.*time \([^ ]* [0-9]*\).*$/$2 \1/p" "$work/console" >>"$work/times"
    qemu-img check -q "$("$COWSHED" path "$clone")"
    "$COWSHED" rm "$clone" >/dev/null
}

for round in $(seq "$rounds"); do
    order="view vhost-user"
    [ $((round % 2)) = 0 ] && order="vhost-user view"
    for way in $order; do one_run "$round" "$way"; done
done
python3 - "$work/times" <<'P'
import statistics, sys
times = {}
for row in open(sys.argv[1]):
    way, job, value = row.split()
    times.setdefault(job, {}).setdefault(way, []).append(int(value))
print("| job | view | vhost-user | view / vhost-user |\n| --- | ---: | ---: | ---: |")
for job, by in times.items():
    view, user = (statistics.median(by[way]) for way in ("view", "vhost-user"))
    print(f"| {job} | {view:,.0f} | {user:,.0f} | {view / user:.2f} |")
P
