#!/usr/bin/env bash
# One base, two clones, two virtual machines at the same time, and the proof of what each changed.
#
# Usage: demo.sh [--clean] FOLDER
# FOLDER is made anew each time and keeps the store afterwards. COWSHED names the program.
set -Eeuo pipefail
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

HERE=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
COWSHED=${COWSHED:-cowshed}
CLEAN=
if [[ ${1:-} == --clean ]]; then
    CLEAN=yes
    shift
fi
FOLDER=${1:?usage: demo.sh [--clean] FOLDER}
export COWSHED_STORE=$FOLDER/store
VIEW=$FOLDER/view
CLONES=(web-1 web-2)
PIDS=()

# --- telling the story -----------------------------------------------------------------------

bold() { if [[ -t 1 ]]; then printf '\033[1m%s\033[0m\n' "$*"; else printf '%s\n' "$*"; fi; }
step() { printf '\n'; bold "== $*"; }
ok() { printf '   ok: %s\n' "$*"; }
fail() {
    printf '\ndemo: FAILED: %s\n' "$*" >&2
    exit 1
}

# Shows a cowshed command, then runs it.
cow() {
    printf '\n$ cowshed %s\n' "$*"
    "$COWSHED" "$@" || fail "cowshed $1 ended with exit code $?"
}

indent() { sed 's/^/   /'; }

mib() { awk -v bytes="$1" 'BEGIN { printf "%.1f MiB", bytes / 1048576 }'; }

# --- before and after ------------------------------------------------------------------------

leave() {
    local pid
    for pid in "${PIDS[@]}"; do kill "$pid" 2>/dev/null && wait "$pid" || true; done
    if mountpoint -q "$VIEW" 2>/dev/null; then
        "$COWSHED" umount "$VIEW" || umount -l "$VIEW" || fusermount3 -uz "$VIEW"
    fi
}

remove_old() {
    leave
    [[ -d $FOLDER ]] || return 0
    # Bases are sealed against removal where the filesystem can do that.
    chattr -R -i "$COWSHED_STORE" 2>/dev/null || true
    rm -rf "$FOLDER"
}

# --- the guests ------------------------------------------------------------------------------

# What a clone does once it is up: some files of its own, one changed, one removed.
job_of() {
    cat <<JOB
echo "$1" >/etc/hostname
mkdir -p /srv/www
echo "<h1>This is $1</h1>" >/srv/www/index.html
dd if=/dev/urandom of=/srv/www/$1.bin bs=1M count=8 status=none
echo "127.0.1.1 $1" >>/etc/hosts
rm -f /etc/issue.net
sha256sum /srv/www/$1.bin
echo "\$(uname -sr) wrote its files on \$(findmnt -no SOURCE,FSTYPE /)"
JOB
}

boot() {
    local name=$1 append
    append="$(cat "$GUEST/cmdline") cowshed.run=$(job_of "$name" | base64 -w0)"
    "$COWSHED" run "$name" --view "$VIEW" --memory 512 --kernel "$GUEST/vmlinux" --initrd "$GUEST/initrd.img" \
        --append "$append" </dev/null >"$FOLDER/$name.console" 2>"$FOLDER/$name.messages" &
    PIDS+=($!)
}

# The job's output as the guest printed it on its console.
job_output() { tr -d '\r' <"$FOLDER/$1.console" | sed -n '/cowshed-job: begin/,/cowshed-job: exit/p'; }

wait_for_guests() {
    local i name code
    for i in "${!CLONES[@]}"; do
        name=${CLONES[$i]}
        code=0
        wait "${PIDS[$i]}" || code=$?
        if [[ $code -ne 0 ]] || ! job_output "$name" | grep 'cowshed-job: exit 0' >/dev/null; then
            tail -n 40 "$FOLDER/$name.console" "$FOLDER/$name.messages" >&2
            fail "$name did not finish its job (exit code $code)"
        fi
    done
    PIDS=()
    sort -u "$FOLDER"/*.messages | indent
    for name in "${CLONES[@]}"; do
        printf '\n   the console of %s\n' "$name"
        job_output "$name" | indent
    done
}

# --- the proof -------------------------------------------------------------------------------

in_guest() { debugfs -R "$2" "$VIEW/clones/$1.p1.raw" 2>&1 | grep -v '^debugfs ' || true; }

check_changes() {
    local name other sum page
    for name in "${CLONES[@]}"; do
        page=$(in_guest "$name" "cat /srv/www/index.html")
        printf '   %s: /srv/www/index.html is %s\n' "$name" "$page"
        [[ $page == "<h1>This is $name</h1>" ]] || fail "$name lost its page"
        [[ $(in_guest "$name" "cat /etc/hostname") == "$name" ]] || fail "$name lost its changed file"
        in_guest "$name" "stat /etc/issue.net" | grep 'not found' >/dev/null || fail "$name still has the file it removed"
        in_guest "$name" "dump /srv/www/$name.bin $FOLDER/dumped" >/dev/null
        sum=$(sha256sum <"$FOLDER/dumped" | cut -d ' ' -f 1)
        rm -f "$FOLDER/dumped"
        job_output "$name" | grep "$sum" >/dev/null || fail "$name: the 8 MiB file differs from what the guest wrote"
        for other in "${CLONES[@]}"; do
            [[ $other == "$name" ]] || in_guest "$name" "stat /srv/www/$other.bin" | grep 'not found' >/dev/null ||
                fail "a file of $other shows up in $name"
        done
    done
    ok "each clone has its own files, byte for byte, and none of the other's"
}

base_digest() { "$COWSHED" info debian --json | grep -o '"digest": *"[^"]*"' | head -n 1; }

check_base() {
    local before=$1
    cow verify debian
    [[ -n $before && $(base_digest) == "$before" ]] || fail "the base's digest changed"
    cmp "$GUEST/disk.raw" "$VIEW/bases/debian@1.raw" || fail "the base differs from the image that was imported"
    ok "the base is byte for byte the image that was imported"
}

check_images() {
    local name out
    for name in "${CLONES[@]}"; do
        printf '\n$ e2fsck -fn view/clones/%s.p1.raw\n' "$name"
        out=$(e2fsck -fn "$VIEW/clones/$name.p1.raw" 2>&1) || { echo "$out"; fail "e2fsck found errors in $name"; }
        tail -n 1 <<<"$out"
        [[ $out != *journal* ]] || fail "$name was not shut down cleanly"
    done
    cow umount "$VIEW"
    for name in "${CLONES[@]}"; do
        printf '\n$ qemu-img check $(cowshed path %s)\n' "$name"
        qemu-img check "$("$COWSHED" path "$name")" || fail "qemu-img check is not content with $name"
    done
    cow check --all
    ok "filesystems and images are clean"
}

show_costs() {
    local name full own
    cow list
    cow tree
    full=$(du --block-size=1 "$GUEST/disk.raw" | cut -f 1)
    printf '\n   a full copy of the disk on this host would cost %s\n' "$(mib "$full")"
    for name in "${CLONES[@]}"; do
        own=$(du --block-size=1 -s "$COWSHED_STORE/clones/$name" | cut -f 1)
        printf '   %s, booted and with its 8 MiB file, costs %s\n' "$name" "$(mib "$own")"
        [[ $own -lt $((full / 2)) ]] || fail "$name costs $own bytes, more than half of a copy"
    done
}

# One clone's state becomes the next version of the base; the other clone gets it.
update_base() {
    local given=${CLONES[0]} kept=${CLONES[1]} file out
    cow promote "$given" --update debian
    cow rebase "$kept" --onto debian@2 --plan
    cow rebase "$kept" --onto debian@2
    cow verify debian
    cow mount "$VIEW"
    for file in "$given" "$kept"; do
        in_guest "$kept" "stat /srv/www/$file.bin" | grep 'Type: regular' >/dev/null || fail "$kept lacks $file.bin"
    done
    [[ $(in_guest "$kept" "cat /srv/www/index.html") == "<h1>This is $kept</h1>" ]] || fail "$kept lost its page"
    [[ $(in_guest "$kept" "cat /etc/hostname") == "$kept" ]] || fail "$kept lost its name"
    out=$(e2fsck -fn "$VIEW/clones/$kept.p1.raw" 2>&1) || { echo "$out"; fail "e2fsck found errors in $kept"; }
    cow umount "$VIEW"
    cow tree
    ok "$kept has what $given brought, and all that was its own; its filesystem is clean"
}

# A clone deletes its file; the host gets the blocks back, and the disk becomes smaller.
give_back() {
    local name=${CLONES[1]} delta before after out
    delta=$("$COWSHED" path "$name")
    cow mount "$VIEW"
    debugfs -w -R "rm /srv/www/$name.bin" "$VIEW/clones/$name.p1.raw" 2>/dev/null
    cow umount "$VIEW"
    before=$(du --block-size=1 "$delta" | cut -f 1)
    cow shrink "$name" --plan
    cow shrink "$name"
    after=$(du --block-size=1 "$delta" | cut -f 1)
    [[ $((before - after)) -ge $((7 << 20)) ]] || fail "$name gave back $((before - after)) bytes of 8 MiB"
    cow resize "$name" 1G
    qemu-img check -q "$delta" || fail "qemu-img check found errors in $name"
    cow mount "$VIEW"
    [[ $(stat -c %s "$VIEW/clones/$name.raw") -eq $((1 << 30)) ]] || fail "$name has another size"
    out=$(sgdisk -v "$VIEW/clones/$name.raw")
    grep 'No problems found' >/dev/null <<<"$out" || { echo "$out"; fail "sgdisk found problems in $name"; }
    out=$(e2fsck -fn "$VIEW/clones/$name.p1.raw" 2>&1) || { echo "$out"; fail "e2fsck found errors in $name"; }
    cow umount "$VIEW"
    cow du
    ok "$name gave $(mib $((before - after))) back to the host, and its disk has 1 GiB"
}

main() {
    local digest started=$SECONDS
    remove_old
    [[ -z $CLEAN ]] || return 0
    trap leave EXIT
    trap 'printf "demo: line %s: %s failed\n" "$LINENO" "$BASH_COMMAND" >&2' ERR
    GUEST=$("$HERE/guest-image.sh")
    mkdir -p "$FOLDER" "$VIEW"

    step "A Debian image becomes a base: stored once, sealed, digested"
    cow import "$GUEST/disk.raw" --name debian
    digest=$(base_digest)

    step "Two clones of it"
    cow clone debian "${CLONES[@]}"
    cow list

    step "The view: every base and clone as a raw disk file"
    cow mount "$VIEW"
    (cd "$FOLDER" && ls -l view/bases view/clones) | indent

    step "Both clones boot at the same time through the view; each writes its own files and shuts down"
    for name in "${CLONES[@]}"; do
        printf '$ cowshed run %s --view view --memory 512 --kernel vmlinux --initrd initrd.img --append ... &\n' "$name"
        boot "$name"
    done
    local booted=$SECONDS
    wait_for_guests
    ok "two virtual machines up, done and down in $((SECONDS - booted)) s"

    step "What each clone changed, read from outside, out of its partition file in the view"
    check_changes

    step "The base is untouched"
    check_base "$digest"

    step "Everything is clean"
    check_images

    step "What it costs"
    show_costs

    step "An update of the base reaches a clone, and what the clone changed stays"
    update_base

    step "What a clone does not need goes back to the host, and its disk becomes smaller"
    give_back

    printf '\n'
    bold "The demo passed in $((SECONDS - started)) s. Its store stays in $COWSHED_STORE."
}

main
