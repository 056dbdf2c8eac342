#!/usr/bin/env bash
# A merge of a filesystem with very many paths: time, processor time and peak memory of the plan and of the merge, when the new
# base and the clone changed 1000 files each, and made and deleted 100. Fails when a bound on the memory is given and broken.
#
# Usage: paths.sh [-p FOLDERS] [-m MIB] [-o OUT.json]      1000 paths in a folder, 1000 folders; needs root (mounts), a release build
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
COWSHED=${COWSHED:-$HERE/../../target/release/cowshed}
FOLDERS=1000 MOST='' OUT=''
while getopts p:m:o: option; do
    case $option in
        p) FOLDERS=$OPTARG ;;
        m) MOST=$OPTARG ;;
        o) OUT=$OPTARG ;;
        *) sed -n '5p' "$0" | cut -c3- >&2; exit 2 ;;
    esac
done
[[ -x $COWSHED ]] || { echo "paths.sh: run make build first" >&2; exit 1; }

WORK=$(mktemp -d) FILES=$(mktemp -d -p /dev/shm)
export COWSHED_STORE=$WORK/store
cleanup() {
    umount "$WORK/mount" 2>/dev/null || true
    "$COWSHED" umount "$WORK/view" 2>/dev/null || true
    chattr -R -i "$WORK/store" 2>/dev/null || true
    rm -rf "$WORK" "$FILES"
}
trap cleanup EXIT
mkdir "$WORK/mount" "$WORK/view"

# The folders, with one file in a hundred that holds something.
python3 - "$FILES" "$FOLDERS" <<'PY'
import os, sys
for folder in range(int(sys.argv[2])):
    path = f"{sys.argv[1]}/part-{folder % 10}/folder-{folder}"
    os.makedirs(path)
    for number in range(1000):
        with open(f"{path}/file-{number}", "w") as file:
            if number % 100 == 0:
                file.write(f"{folder}/{number} " * 20)
PY
truncate -s "$((FOLDERS * 1024 * 1024 + (64 << 20)))" "$WORK/old.raw"
mke2fs -q -t ext4 -N "$((FOLDERS * 1100))" -d "$FILES" "$WORK/old.raw"
rm -rf "$FILES"

# Changes, additions and deletions of one side, in folders from the given one on.
edit() {
    cp --sparse=always "$WORK/old.raw" "$WORK/$1.raw"
    mount -o loop "$WORK/$1.raw" "$WORK/mount"
    python3 - "$WORK/mount" "$1" "$2" "$((FOLDERS / 2))" <<'PY'
import os, sys
root, side, first, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
for number in range(1000):
    folder = first + number % count
    path = f"{root}/part-{folder % 10}/folder-{folder}"
    with open(f"{path}/file-{number // count + 7}", "w") as file:
        file.write(f"{side} {number}\n")
    if number % 10 == 0:
        with open(f"{path}/new-of-{side}-{number}", "w") as file:
            file.write("new\n")
    if number % 10 == 1:
        os.unlink(f"{path}/file-{number // count + 500}")
PY
    umount "$WORK/mount"
}
edit base 0
edit clone "$((FOLDERS / 2))"
"$COWSHED" import "$WORK/old.raw" --name os >/dev/null
"$COWSHED" import --update os "$WORK/base.raw" >/dev/null
"$COWSHED" clone os@1 web >/dev/null
"$COWSHED" mount "$WORK/view" >/dev/null
python3 "$HERE/become.py" "$WORK/old.raw" "$WORK/clone.raw" "$WORK/view/clones/web.raw"
"$COWSHED" umount "$WORK/view" >/dev/null
rm "$WORK"/*.raw

# Seconds, seconds of processor time, and MiB at the peak.
measure() {
    python3 - "$COWSHED" rebase web --onto os@2 "$@" <<'PY'
import resource, subprocess, sys, time
start = time.monotonic()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(f"{time.monotonic() - start:.1f} {used.ru_utime + used.ru_stime:.1f} {used.ru_maxrss // 1024}")
PY
}
read -r PLAN PLAN_CPU PLAN_MIB < <(measure --plan)
read -r MERGE MERGE_CPU MERGE_MIB < <(measure)
cat <<TEXT
$((FOLDERS * 1000)) paths, plan: $PLAN s, $PLAN_CPU s of CPU, $PLAN_MIB MiB at the peak
$((FOLDERS * 1000)) paths, merge: $MERGE s, $MERGE_CPU s of CPU, $MERGE_MIB MiB at the peak
TEXT
if [[ -n $OUT ]]; then
    printf '{"paths": %s, "plan_s": %s, "plan_cpu_s": %s, "plan_mib": %s, "merge_s": %s, "merge_cpu_s": %s, "merge_mib": %s}\n' \
        "$((FOLDERS * 1000))" "$PLAN" "$PLAN_CPU" "$PLAN_MIB" "$MERGE" "$MERGE_CPU" "$MERGE_MIB" >"$OUT"
fi
if [[ -n $MOST ]] && ((PLAN_MIB > MOST || MERGE_MIB > MOST)); then
    echo "paths.sh: more than $MOST MiB" >&2
    exit 1
fi
