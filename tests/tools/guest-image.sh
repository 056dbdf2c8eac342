#!/usr/bin/env bash
# Builds a real, bootable Debian disk image for the tests and the demo, once.
#
# Usage: guest-image.sh [CACHE_DIR]      CACHE_DIR defaults to ${XDG_CACHE_HOME:-~/.cache}/cowshed
#
# The last line on stdout is the image's folder, CACHE_DIR/guest-<hash of the recipe>; the link
# CACHE_DIR/guest points to it. The folder holds
#   disk.raw     GPT: partition 1 is the ext4 root, partition 14 is GRUB for BIOS machines
#   vmlinux      the same kernel as in the image's /boot, uncompressed, for QEMU's -kernel (PVH)
#   initrd.img   uncompressed initial root that loads virtio_blk
#   cmdline      kernel command line for a quick boot with a serial console
# Everything comes from the Debian mirror that apt on this host is configured for.
set -Eeuo pipefail
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

SELF=$(readlink -f "${BASH_SOURCE[0]}")
PARTS=$(dirname "$SELF")/guest
# shellcheck source=tests/tools/guest/debian.sh
. "$PARTS/debian.sh"
DISK_MIB=2048
SECTOR=512
GRUB_START=2048 # sectors; 1 MiB long
ROOT_START=4096
PACKAGES=systemd-sysv,acpid,kmod,iproute2
CMDLINE="root=/dev/vda1 rw console=ttyS0 quiet systemd.show_status=false mitigations=off nokaslr no_timer_check 8250.nr_uarts=1 cryptomgr.notests random.trust_cpu=on raid=noautodetect"

say() { printf 'guest-image: %s\n' "$*" >&2; }
die() { printf 'guest-image: %s\n' "$*" >&2; exit 1; }

# Prints "package version" of the cloud kernel: from backports if that suite offers one.
kernel_package() {
    local release=$1 version
    version=$(apt-cache madison linux-image-cloud-amd64 |
        awk -F' *[|] *' -v want="$release-backports/" 'index($3, want) {print $2; exit}')
    [[ -n $version ]] || version=$(apt-cache madison linux-image-cloud-amd64 | awk -F' *[|] *' '{print $2; exit}')
    [[ -n $version ]] || die "apt offers no linux-image-cloud-amd64; run apt-get update and try again"
    apt-cache show "linux-image-cloud-amd64=$version" |
        sed -nE 's/^Depends: (linux-image-[^ ,]+) \(= ([^)]+)\).*/\1 \2/p;T;q'
}

# Downloads package $1 (NAME or NAME=VERSION) and unpacks it into folder $2; nothing is installed.
unpack_package() {
    local package=$1 target=$2
    mkdir -p "$target"
    (cd "$target" && apt-get -qq -o APT::Sandbox::User=root download "$package" >&2)
    dpkg-deb -x "$target"/*.deb "$target"
    rm "$target"/*.deb
}

# --- the pieces --------------------------------------------------------------------------------

# Uncompresses the kernel inside bzImage $1 into $2; the boot protocol's header says where it is.
extract_vmlinux() {
    local image=$1 out=$2 setup_sectors offset length magic
    setup_sectors=$(od -An -tu1 -j 497 -N 1 "$image")
    offset=$(($(od -An -tu4 -j 584 -N 4 "$image") + (setup_sectors + 1) * SECTOR))
    length=$(od -An -tu4 -j 588 -N 4 "$image")
    magic=$(od -An -tx1 -j "$offset" -N 4 "$image" | tr -d ' ')
    # The last four bytes of the payload are its uncompressed size, not part of the stream.
    payload() { dd if="$image" bs=1M iflag=skip_bytes,count_bytes skip="$offset" count="$((length - ${1:-4}))" status=none; }
    case $magic in
        28b52ffd) payload | zstd -dc >"$out" ;;
        fd377a58) payload | xz -dc >"$out" ;;
        1f8b*) payload 0 | gzip -dc >"$out" ;;
        *) die "the kernel's payload starts with $magic, which is neither zstd, xz nor gzip" ;;
    esac
}

module_path() {
    find "$1" -path '*/lib/modules/*' -name "$2.ko*" -print -quit
}

make_initrd() {
    local kernel=$1 busybox=$2 out=$3 stage module
    stage=$(mktemp -d)
    mkdir -p "$stage"/{bin,proc,dev,root}
    cp "$busybox" "$stage/bin/busybox"
    install -m 755 "$PARTS/init" "$stage/init"
    module=$(module_path "$kernel" virtio_blk)
    case $module in
        *.xz) xz -dc "$module" ;;
        *.zst) zstd -dcq "$module" ;;
        *.gz) gzip -dc "$module" ;;
        *.ko) cat "$module" ;;
        *) die "the kernel package has no virtio_blk module" ;;
    esac >"$stage/virtio_blk.ko"
    (cd "$stage" && find . | sort | cpio --quiet -o -H newc -R 0:0) >"$out"
    rm -r "$stage"
}

bootstrap() {
    local release=$1 root=$2 options
    mapfile -t options < <(host_apt_options)
    host_sources "$release" | mmdebstrap --quiet --variant=minbase --mode=root --format=directory \
        --include="$PACKAGES" "${options[@]}" \
        --aptopt='Acquire::Languages "none"' \
        --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-include=/usr/share/doc/*/copyright' \
        "$release" "$root" -
}

configure_root() {
    local root=$1
    configure_guest "$root"
    printf '/dev/vda1 / ext4 rw,discard 0 1\n' >"$root/etc/fstab"
    printf 'button\nevdev\nvirtio_net\n' >"$root/etc/modules-load.d/guest.conf"
    mkdir -p "$root/etc/acpi/events"
    printf 'event=button/power.*\naction=/usr/bin/systemctl --no-block --job-mode=replace-irreversibly start poweroff.target\n' >"$root/etc/acpi/events/power"
    install -m 644 "$PARTS/guest-network.service" "$root/etc/systemd/system/"
    chroot "$root" systemctl -q enable guest-network.service acpid.service
}

install_kernel() {
    local kernel=$1 root=$2 initrd=$3 version
    version=$(basename "$kernel"/boot/vmlinuz-*)
    version=${version#vmlinuz-}
    cp "$kernel"/boot/{vmlinuz,config}-"$version" "$root/boot/"
    cp "$initrd" "$root/boot/initrd.img-$version"
    mkdir -p "$root/usr/lib/modules" "$root/boot/grub"
    cp -a "$(find "$kernel" -path "*/lib/modules/$version" -print -quit)" "$root/usr/lib/modules/"
    chroot "$root" depmod "$version"
    cat >"$root/boot/grub/grub.cfg" <<CFG
serial --unit=0 --speed=115200
terminal_input serial console
terminal_output serial console
linux /boot/vmlinuz-$version $CMDLINE
initrd /boot/initrd.img-$version
boot
CFG
}

# --- the disk ------------------------------------------------------------------------------------

le64() {
    local value=$1 i
    for i in 0 8 16 24 32 40 48 56; do
        # shellcheck disable=SC2059
        printf "\\x$(printf '%02x' $(((value >> i) & 255)))"
    done
}

# Puts GRUB's two stages where a BIOS finds them: the boot sector, and partition 14.
install_grub() {
    local disk=$1 work=$2 here=/usr/lib/grub/i386-pc
    grub-mkimage -O i386-pc -d "$here" -p '(hd0,gpt1)/boot/grub' -o "$work/core.img" \
        biosdisk part_gpt ext2 linux normal serial terminal configfile boot
    [[ $(stat -c %s "$work/core.img") -le $((2048 * SECTOR)) ]] || die "GRUB's core image is larger than its partition"
    cp "$here/boot.img" "$work/boot.img"
    # boot.img keeps the first sector of the core at byte 92; the core's first sector keeps that
    # of the rest at byte 500.
    le64 "$GRUB_START" | dd of="$work/boot.img" bs=1 seek=92 conv=notrunc status=none
    le64 $((GRUB_START + 1)) | dd of="$work/core.img" bs=1 seek=500 conv=notrunc status=none
    dd if="$work/boot.img" of="$disk" bs=440 count=1 conv=notrunc status=none
    dd if="$work/core.img" of="$disk" bs=$SECTOR seek=$GRUB_START conv=notrunc status=none
}

make_disk() {
    local root=$1 disk=$2 work=$3 sectors=$((DISK_MIB * 2048)) root_sectors
    root_sectors=$(((sectors - 2048) / 2048 * 2048 - ROOT_START))
    truncate -s "${DISK_MIB}M" "$disk"
    sgdisk -a 1 -n "14:$GRUB_START:$((ROOT_START - 1))" -t 14:ef02 -c 14:grub \
        -n "1:$ROOT_START:$((ROOT_START + root_sectors - 1))" -t 1:8304 -c 1:root "$disk" >/dev/null
    truncate -s $((root_sectors * SECTOR)) "$work/part"
    mke2fs -q -F -t ext4 -L root -d "$root" "$work/part"
    e2fsck -fn "$work/part" >/dev/null 2>&1 || die "the new root filesystem does not pass e2fsck"
    dd if="$work/part" of="$disk" bs=1M seek=$((ROOT_START / 2048)) conv=notrunc,sparse status=none
    rm "$work/part"
    install_grub "$disk" "$work"
}

# --- the build -------------------------------------------------------------------------------------

# A build must never stop without a word.
trap 'say "line $LINENO: \"$BASH_COMMAND\" failed"' ERR

# Runs as root: makes the whole image in folder $1.
build_in() {
    local out=$1 release package version work
    release=$(release_name)
    work=$out/work
    mkdir -p "$work"
    read -r package version < <(kernel_package "$release")
    say "downloading the kernel, $package $version"
    unpack_package "$package=$version" "$work/kernel"
    unpack_package busybox-static "$work/busybox"
    extract_vmlinux "$(echo "$work"/kernel/boot/vmlinuz-*)" "$out/vmlinux"
    make_initrd "$work/kernel" "$(find "$work/busybox" -path '*/bin/busybox' -print -quit)" "$out/initrd.img"
    say "installing Debian $release"
    bootstrap "$release" "$work/root"
    configure_root "$work/root"
    install_kernel "$work/kernel" "$work/root" "$out/initrd.img"
    say "writing the disk"
    make_disk "$work/root" "$out/disk.raw" "$work"
    printf '%s\n' "$CMDLINE" >"$out/cmdline"
    rm -r "$work"
}

main() {
    local cache=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/cowshed} hash dir stage started=$SECONDS
    hash=$({ release_name; cat "$SELF" "$PARTS"/*; } | sha256sum | cut -c 1-12)
    mkdir -p "$cache"
    cache=$(readlink -f "$cache")
    dir=$cache/guest-$hash
    exec 9>"$cache/guest.lock"
    flock 9
    if [[ ! -e $dir ]]; then
        stage=$(mktemp -d "$cache/tmp-guest.XXXXXX")
        # shellcheck disable=SC2064
        trap "as_root rm -rf '$stage'" EXIT
        as_root bash "$SELF" --build-in "$stage" || die "the build failed; see above"
        as_root chown -R "$(id -u):$(id -g)" "$stage"
        chmod 755 "$stage"
        mv "$stage" "$dir"
        trap - EXIT
        say "built in $((SECONDS - started)) s"
    fi
    ln -sfn "guest-$hash" "$cache/guest"
    printf '%s\n' "$dir"
}

if [[ ${1:-} == --build-in ]]; then
    umask 022
    build_in "$2"
else
    main "$@"
fi
