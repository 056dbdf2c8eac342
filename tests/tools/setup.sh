#!/usr/bin/env bash
# Installs what the tests and the demo need on Debian, and does nothing when it is all there.
#
# Usage: setup.sh            install what is missing (as root, or through sudo)
#        setup.sh --check    only report what is missing; exit 1 if anything is
#
# On Debian 12 QEMU comes from the backports suite, whose source is derived from the one
# that is configured for the release itself; newer releases use their own packages.
set -euo pipefail
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

# What must be there: "command package [package ...]". A command may name a file instead.
REQUIRED=(
    "cc gcc libc6-dev"
    "c++ g++"
    "/usr/include/ext2fs/ext2fs.h libext2fs-dev"
    "diff3 diffutils"
    "git git"
    "pwck passwd"
    "qemu-img qemu-utils"
    "qemu-io qemu-utils"
    "qemu-system-x86_64 qemu-system-x86"
    "qemu-storage-daemon qemu-utils"
    "qemu-nbd qemu-utils"
    "nbdinfo libnbd-bin"
    "nbdcopy libnbd-bin"
    "fio fio"
    "fusermount3 fuse3"
    "mke2fs e2fsprogs"
    "debugfs e2fsprogs"
    "dumpe2fs e2fsprogs"
    "tune2fs e2fsprogs"
    "e2fsck e2fsprogs"
    "mkfs.xfs xfsprogs"
    "mkfs.btrfs btrfs-progs"
    "filefrag e2fsprogs"
    "losetup mount"
    "mkfs.vfat dosfstools"
    "fsck.vfat dosfstools"
    "mcopy mtools"
    "useradd passwd"
    "mkntfs ntfs-3g"
    "ntfsinfo ntfs-3g"
    "ntfscluster ntfs-3g"
    "pvcreate lvm2"
    "mkswap util-linux"
    "blkid util-linux"
    "sgdisk gdisk"
    "sfdisk fdisk"
    "mmdebstrap mmdebstrap"
    "cpio cpio"
    "xz xz-utils"
    "zstd zstd"
    "flock util-linux"
    "setpriv util-linux"
    "patch patch"
    "python3 python3"
    "grub-mkimage grub-common"
    "/usr/lib/grub/i386-pc/boot.img grub-pc-bin"
)
# Packages that come from backports on Debian 12. They depend on each other by exact
# version, so they are always named in one transaction.
BACKPORTED=(qemu-utils qemu-system-x86 qemu-system-common)
BACKPORTS_RELEASE=bookworm

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

present() {
    case "$1" in
        /*) [[ -e $1 ]] ;;
        *) command -v "$1" >/dev/null ;;
    esac
}

missing_packages() {
    local entry words
    for entry in "${REQUIRED[@]}"; do
        read -ra words <<<"$entry"
        present "${words[0]}" || printf '%s\n' "${words[@]:1}"
    done | sort -u
}

as_root() {
    if [[ $(id -u) -eq 0 ]]; then
        "$@"
    else
        sudo "$@"
    fi
}

apt_get() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@"
}

release_name() {
    # shellcheck disable=SC1091
    (. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
}

suite_configured() {
    apt-get indextargets --format '$(RELEASE)' 'Created-By: Packages' | grep -qx "$1"
}

# Prints the deb822 stanza of release $1 with the backports suite in its place.
backports_stanza() {
    local release=$1 file
    for file in /etc/apt/sources.list.d/*.sources; do
        [[ -e $file ]] || continue
        awk -v release="$release" '
            function words_have(line, word,   n, i, w) {
                n = split(line, w, /[ \t]+/)
                for (i = 2; i <= n; i++) if (w[i] == word) return 1
                return 0
            }
            BEGIN { RS = ""; FS = "\n" }
            {
                deb = 0; here = 0; enabled = 1
                for (i = 1; i <= NF; i++) {
                    if ($i ~ /^Types:/) deb = words_have($i, "deb")
                    if ($i ~ /^Suites:/) here = words_have($i, release)
                    if ($i ~ /^Enabled:[ \t]*no/) enabled = 0
                }
                if (!deb || !here || !enabled) next
                for (i = 1; i <= NF; i++) {
                    if ($i ~ /^#/) continue
                    if ($i ~ /^Types:/) $i = "Types: deb"
                    if ($i ~ /^Suites:/) $i = "Suites: " release "-backports"
                    if ($i ~ /^Components:/) $i = "Components: main"
                    print $i
                }
                exit
            }' "$file"
    done
}

# Prints the one-line source of release $1 with the backports suite in its place.
backports_line() {
    local release=$1
    cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null |
        sed -nE "s#^[[:space:]]*(deb[[:space:]]+(\[[^]]*\][[:space:]]+)?[^[:space:]]+)[[:space:]]+$release[[:space:]].*#\1 $release-backports main#p" |
        head -n 1 || true
}

enable_backports() {
    local release=$1 text target
    suite_configured "$release-backports" && return
    text=$(backports_stanza "$release")
    target=/etc/apt/sources.list.d/cowshed-backports.sources
    if [[ -z $text ]]; then
        text=$(backports_line "$release")
        target=/etc/apt/sources.list.d/cowshed-backports.list
    fi
    [[ -n $text ]] || die "no apt source for $release was found under /etc/apt; configure one and run this again"
    say "enabling $release-backports in $target"
    printf '%s\n' "$text" | as_root tee "$target" >/dev/null
}

install() {
    local wanted=("$@") plain=() backported=() package release
    release=$(release_name)
    if [[ $release != "$BACKPORTS_RELEASE" ]]; then
        apt_get update
        apt_get install -y --no-install-recommends "${wanted[@]}"
        return
    fi
    for package in "${wanted[@]}"; do
        if [[ " ${BACKPORTED[*]} " == *" $package "* ]]; then
            backported=("${BACKPORTED[@]}")
        else
            plain+=("$package")
        fi
    done
    # The guest image takes its kernel from backports too, so the suite is always enabled.
    enable_backports "$release"
    apt_get update
    if [[ ${#backported[@]} -gt 0 ]]; then
        apt_get install -y --no-install-recommends -t "$release-backports" "${backported[@]}"
    fi
    if [[ ${#plain[@]} -gt 0 ]]; then
        apt_get install -y --no-install-recommends "${plain[@]}"
    fi
}

main() {
    local missing
    mapfile -t missing < <(missing_packages)
    if [[ ${#missing[@]} -gt 0 && ${1:-} == --check ]]; then
        die "missing packages: ${missing[*]}"
    fi
    if [[ ${#missing[@]} -gt 0 ]]; then
        command -v apt-get >/dev/null || die "apt-get is not here; install the equivalents of these Debian packages: ${missing[*]}"
        [[ $(id -u) -eq 0 ]] || command -v sudo >/dev/null ||
            die "root or sudo is needed once, to install: ${missing[*]}"
        say "installing: ${missing[*]}"
        install "${missing[@]}"
        mapfile -t missing < <(missing_packages)
        [[ ${#missing[@]} -eq 0 ]] || die "still missing after the installation: ${missing[*]}"
        say "done"
    fi
    command -v cargo >/dev/null || die "cargo is not in PATH; install a Rust toolchain and run this again"
}

main "$@"
