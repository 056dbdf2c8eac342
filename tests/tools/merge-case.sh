#!/usr/bin/env bash
# Builds the three Debian disks of a rebase with a merge, once: a base, its update, and a clone's state.
#
# Usage: merge-case.sh [CACHE_DIR]      CACHE_DIR defaults to ${XDG_CACHE_HOME:-~/.cache}/cowshed
#
# The last line on stdout is the folder, CACHE_DIR/merge-<hash of the recipe>; the link
# CACHE_DIR/merge-case points to it. The folder holds
#   old.raw      GPT: partition 1 is the ext4 root, partition 15 an empty EFI system partition
#   new.raw      old.raw after merge-case/new.sh: what the base's maintainers did
#   clone.raw    old.raw after merge-case/clone.sh: what the clone's user did
#   vmlinux, initrd.img, cmdline     as in the guest image
# Both changes are made by the kernel, in place, on a copy of old.raw, as a guest would. old.raw has only
# the release's own suite, the packages of its updates and its security suite come later.
set -Eeuo pipefail
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

SELF=$(readlink -f "${BASH_SOURCE[0]}")
HERE=$(dirname "$SELF")
PARTS=$HERE/guest
STEPS=$HERE/merge-case
# shellcheck source=tests/tools/guest/debian.sh
. "$PARTS/debian.sh"
DISK_MIB=2048
SECTOR=512
ESP_START=2048
ROOT_START=34816
ROOT_SECTORS=$(((DISK_MIB - 1) * 2048 - ROOT_START))
# Fewer upgrades than this prove little.
UPGRADES_MIN=15
PACKAGES=systemd-sysv,kmod,iproute2,openssh-server,cron,logrotate,ca-certificates,openssl,perl,tzdata,rsync
PACKAGES+=,rsyslog,jq,xz-utils,bind9-host,nginx-light,python3-minimal,libarchive-tools,nano,vim-tiny,libutempter0

say() { printf 'merge-case: %s\n' "$*" >&2; }
die() { printf 'merge-case: %s\n' "$*" >&2; exit 1; }

# --- the old base --------------------------------------------------------------------------------

bootstrap() {
    local release=$1 root=$2 options
    mapfile -t options < <(host_apt_options)
    host_sources "$release" | grep " $release main$" |
        mmdebstrap --quiet --variant=minbase --mode=root --format=directory \
            --include="$PACKAGES" "${options[@]}" \
            --aptopt='Acquire::Languages "none"' \
            --dpkgopt='path-exclude=/usr/share/locale/*' \
            "$release" "$root" -
}

make_disk() {
    local root=$1 disk=$2 work=$3
    truncate -s "${DISK_MIB}M" "$disk"
    sgdisk -a 1 -n "15:$ESP_START:$((ROOT_START - 1))" -t 15:ef00 -c 15:efi \
        -n "1:$ROOT_START:$((ROOT_START + ROOT_SECTORS - 1))" -t 1:8304 -c 1:root "$disk" >/dev/null
    truncate -s $(((ROOT_START - ESP_START) * SECTOR)) "$work/esp"
    mkfs.vfat -n EFI "$work/esp" >/dev/null
    truncate -s $((ROOT_SECTORS * SECTOR)) "$work/part"
    mke2fs -q -F -t ext4 -L root -d "$root" "$work/part"
    dd if="$work/esp" of="$disk" bs=1M seek=$((ESP_START / 2048)) conv=notrunc,sparse status=none
    dd if="$work/part" of="$disk" bs=1M seek=$((ROOT_START / 2048)) conv=notrunc,sparse status=none
    rm "$work/part" "$work/esp"
}

# --- what happens to it afterwards -----------------------------------------------------------------

# Runs merge-case/$2.sh in the root of disk $1. Packages and their lists are kept in folder $3: both
# sides see the same versions.
evolve() {
    local disk=$1 step=$2 work=$3 root=$3/mnt
    mkdir -p "$root" "$work"/{archives/partial,lists/partial}
    mount -o "loop,offset=$((ROOT_START * SECTOR)),sizelimit=$((ROOT_SECTORS * SECTOR))" "$disk" "$root"
    mount -t proc proc "$root/proc"
    mount -t tmpfs tmpfs "$root/tmp"
    mount -t tmpfs tmpfs "$root/run"
    mount --bind "$work/archives" "$root/var/cache/apt/archives"
    mount --bind "$work/lists" "$root/var/lib/apt/lists"
    cp -L /etc/resolv.conf "$root/tmp/resolv.conf"
    mount --bind "$root/tmp/resolv.conf" "$root/etc/resolv.conf"
    cp "$work"/{sources.list,apt.conf} "$STEPS"/*.sh "$root/tmp/"
    chroot "$root" env -i PATH="$PATH" HOME=/root LC_ALL=C DEBIAN_FRONTEND=noninteractive TZ=UTC \
        APT_CONFIG=/tmp/apt.conf http_proxy="${http_proxy:-}" https_proxy="${https_proxy:-}" \
        bash -Eeuo pipefail "/tmp/$step.sh" >"$work/$step.log" 2>&1 ||
        { tail -n 30 "$work/$step.log" >&2; die "$step.sh failed; its last lines are above"; }
    umount -R "$root"
    e2fsck_root "$disk" "$work"
}

e2fsck_root() {
    local disk=$1 part=$2/part
    dd if="$disk" of="$part" bs=1M skip=$((ROOT_START / 2048)) count=$((ROOT_SECTORS / 2048)) conv=sparse status=none
    e2fsck -fn "$part" >/dev/null 2>&1 || die "the root filesystem of $(basename "$disk") does not pass e2fsck"
    rm "$part"
}

# Apt in the chroot uses all suites of this host's release, and starts no service.
apt_settings() {
    local release=$1 work=$2
    host_sources "$release" >"$work/sources.list"
    {
        host_apt_options | sed 's/^--aptopt=//; s/$/;/'
        cat <<'CONF'
Dir::Etc::SourceList "/tmp/sources.list";
Dir::Etc::SourceParts "/dev/null";
Acquire::Languages "none";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
APT::Install-Recommends "false";
APT::Get::Assume-Yes "true";
APT::Sandbox::User "root";
APT::Keep-Downloaded-Packages "true";
DPkg::Options { "--force-confold"; };
CONF
    } >"$work/apt.conf"
}

# --- the build -------------------------------------------------------------------------------------

# A build must never stop without a word.
trap 'say "line $LINENO: \"$BASH_COMMAND\" failed"' ERR

# Runs as root in a mount namespace of its own: makes the three disks in folder $1.
build_in() {
    local out=$1 work=$1/work release upgrades
    release=$(release_name)
    mkdir -p "$work"
    apt_settings "$release" "$work"
    say "installing Debian $release as it was released"
    bootstrap "$release" "$work/root"
    configure_guest "$work/root"
    printf '/dev/vda1 / ext4 rw 0 1\n' >"$work/root/etc/fstab"
    printf '#!/bin/sh\nexit 101\n' >"$work/root/usr/sbin/policy-rc.d"
    chmod 755 "$work/root/usr/sbin/policy-rc.d"
    cp "$STEPS"/*.sh "$work/root/tmp/"
    chroot "$work/root" bash -Eeuo pipefail /tmp/old.sh
    rm -rf "$work"/root/tmp/* "$work"/root/var/lib/apt/lists/*_*
    make_disk "$work/root" "$out/old.raw" "$work"
    for step in new clone; do
        say "running $step.sh"
        cp --sparse=always "$out/old.raw" "$out/$step.raw"
        evolve "$out/$step.raw" "$step" "$work"
    done
    upgrades=$(grep -c '^Unpacking .* over ' "$work/new.log") || true
    [[ $upgrades -ge $UPGRADES_MIN ]] ||
        die "the updates of $release upgrade $upgrades packages only, not $UPGRADES_MIN: name other packages in $SELF"
    say "$upgrades packages upgraded"
    cp "$work"/*.log "$out/"
    rm -r "$work"
}

main() {
    local cache=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/cowshed} guest hash dir stage started=$SECONDS
    guest=$("$HERE/guest-image.sh" "$cache")
    hash=$({ echo "$guest"; release_name; cat "$SELF" "$PARTS"/debian.sh "$STEPS"/*.sh; } | sha256sum | cut -c 1-12)
    cache=$(readlink -f "$cache")
    dir=$cache/merge-$hash
    exec 9>"$cache/merge.lock"
    flock 9
    if [[ ! -e $dir ]]; then
        stage=$(mktemp -d "$cache/tmp-merge.XXXXXX")
        # shellcheck disable=SC2064
        trap "as_root rm -rf '$stage'" EXIT
        as_root unshare --mount bash "$SELF" --build-in "$stage" || die "the build failed; see above"
        as_root chown -R "$(id -u):$(id -g)" "$stage"
        ln "$guest"/{vmlinux,initrd.img,cmdline} "$stage/"
        chmod 755 "$stage"
        mv "$stage" "$dir"
        trap - EXIT
        say "built in $((SECONDS - started)) s"
    fi
    ln -sfn "merge-$hash" "$cache/merge-case"
    printf '%s\n' "$dir"
}

if [[ ${1:-} == --build-in ]]; then
    umask 022
    build_in "$2"
else
    main "$@"
fi
