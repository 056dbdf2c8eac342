# Parts of the scripts that build Debian images; to be sourced. PARTS is this folder.
# shellcheck shell=bash

as_root() {
    if [[ $(id -u) -eq 0 ]]; then
        "$@"
    else
        sudo --preserve-env=http_proxy,https_proxy,no_proxy "$@"
    fi
}

release_name() {
    # shellcheck disable=SC1091
    (. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
}

# --- what apt on this host is configured for -------------------------------------------------

# One-line sources of this host for its own release, its updates and its security suite.
host_sources() {
    local release=$1 keyring=/usr/share/keyrings/debian-archive-keyring.gpg option=
    [[ -e $keyring ]] && option="[signed-by=$keyring] "
    apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' | sort -u |
        while read -r suite uri; do
            case $suite in
                "$release" | "$release-updates" | "$release-security")
                    printf 'deb %s%s %s main\n' "$option" "$uri" "$suite"
                    ;;
            esac
        done
}

# Host apt options that decide whether the mirror can be used at all.
host_apt_options() {
    apt-config dump |
        sed -nE 's/^(Acquire::(Check-Date|Check-Valid-Until|https?::Proxy)) "(.+)";$/--aptopt=\1 "\3"/p'
}

# --- a root that boots quickly on a serial console -------------------------------------------

# No udev runs in it; a job comes from the kernel command line, see cowshed-job.
configure_guest() {
    local root=$1 unit
    echo debian >"$root/etc/hostname"
    printf '127.0.0.1 localhost\n' >"$root/etc/hosts"
    # Empty, not absent: every clone gets an id of its own at its first boot, without presets.
    : >"$root/etc/machine-id"
    printf 'nameserver 10.0.2.3\n' >"$root/etc/resolv.conf"
    install -m 755 "$PARTS/cowshed-job" "$root/usr/local/sbin/cowshed-job"
    install -m 644 "$PARTS/cowshed-job.service" "$root/etc/systemd/system/"
    # A login on the serial console: root, no password. There is no udev, so the getty must not
    # wait for a device unit.
    chroot "$root" passwd -d root >/dev/null
    chroot "$root" systemctl -q enable cowshed-job.service console-getty.service
    for unit in systemd-networkd.service systemd-logind.service getty@tty1.service \
        serial-getty@ttyS0.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
        e2scrub_all.timer e2scrub_reap.service fstrim.timer dev-hugepages.mount dev-mqueue.mount \
        sys-kernel-debug.mount sys-kernel-tracing.mount; do
        ln -sf /dev/null "$root/etc/systemd/system/$unit"
    done
}
