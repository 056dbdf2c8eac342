//! Files that a guest makes from other files: how each comes back after a rebase dropped it or left it old.
//!
//! systemd has a mechanism of its own: units with `ConditionNeedsUpdate=/etc` (or `/var`) run when `/etc/.updated` is
//! missing or older than `/usr`. Fedora, openSUSE and Arch rebuild `ld.so.cache`, the hardware database and the
//! journal's catalogue that way, and the preset drops `.updated` for them. Debian and Ubuntu ship neither
//! `ldconfig.service` nor `systemd-update-done.service`: there a unit of our own is needed, [`boot_unit`].

use std::collections::BTreeSet;
use std::fmt::Write as _;

/// How a derived file comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Comeback {
    /// The named program writes it when it next runs, and works without it until then.
    OnUse(&'static str),
    /// The distribution's own timer or boot unit of that name.
    Unit(&'static str),
    /// This command, once, at the next boot; see [`boot_unit`].
    Run(&'static str),
}

/// A place: what its path begins and ends with. A star in the preset's glob stands between.
type Place = (&'static [u8], &'static [u8], Comeback);

const MIME: Comeback = Comeback::Run("update-mime-database /usr/share/mime");
const PLACES: [Place; 19] = [
    (b"/etc/.updated", b"", Comeback::Unit("systemd-update-done.service")),
    (b"/var/.updated", b"", Comeback::Unit("systemd-update-done.service")),
    (b"/etc/ld.so.cache", b"", Comeback::Run("ldconfig")),
    (b"/var/cache/ldconfig/aux-cache", b"", Comeback::OnUse("ldconfig")),
    (b"/var/cache/apt/", b".bin", Comeback::OnUse("apt")),
    (b"/var/cache/man", b"", Comeback::Unit("man-db.timer")),
    (b"/var/cache/fontconfig", b"", Comeback::OnUse("fontconfig")),
    (b"/usr/share/icons/", b"/icon-theme.cache", Comeback::Run(ICONS)),
    (b"/usr/share/applications/mimeinfo.cache", b"", Comeback::Run("update-desktop-database -q")),
    (b"/usr/share/mime/", b"", MIME),
    (b"/usr/share/glib-2.0/schemas/gschemas.compiled", b"", Comeback::Run(SCHEMAS)),
    (b"/usr/lib/", b"/loaders.cache", Comeback::Run(LOADERS)),
    (b"/usr/lib/", b"/gio/modules/giomodule.cache", Comeback::Run(GIO)),
    (b"/usr/lib/udev/hwdb.bin", b"", Comeback::Run("systemd-hwdb update --usr")),
    (b"/etc/udev/hwdb.bin", b"", Comeback::Run("systemd-hwdb update")),
    (b"/var/lib/systemd/catalog/database", b"", Comeback::Run("journalctl --update-catalog")),
    (b"/usr/share/info/dir", b"", Comeback::Run("update-info-dir")),
    (b"/etc/ssl/certs/ca-certificates.crt", b"", Comeback::Run("update-ca-certificates")),
    (b"/var/lib/dpkg/available", b"", Comeback::OnUse("dpkg")),
];
const ICONS: &str = "for d in /usr/share/icons/*/; do gtk-update-icon-cache -q -f $d; done";
const SCHEMAS: &str = "glib-compile-schemas /usr/share/glib-2.0/schemas";
const LOADERS: &str =
    "for q in /usr/lib/*/gdk-pixbuf-2.0/gdk-pixbuf-query-loaders; do $q --update-cache; done";
const GIO: &str = "for d in /usr/lib/*/gio/modules; do ${d%/gio/modules}/glib-2.0/gio-querymodules $d; done";

impl Comeback {
    /// How the file at `path` comes back, when it is one that is known.
    #[must_use]
    pub fn of(path: &[u8]) -> Option<Self> {
        PLACES
            .iter()
            .find(|(start, end, _)| path.starts_with(start) && path.ends_with(end))
            .map(|place| place.2)
    }
}

/// Name of the unit that [`boot_unit`] writes: `/etc/systemd/system/NAME`, wanted by `sysinit.target`, that is a
/// symbolic link `/etc/systemd/system/sysinit.target.wants/NAME` to it.
pub const BOOT_UNIT: &str = "cowshed-rebuild.service";

/// A systemd unit that runs the commands of `comebacks` once and then removes itself; nothing when there are none.
/// A command that fails or is not installed stops no other and no boot.
#[must_use]
pub fn boot_unit(comebacks: &BTreeSet<Comeback>) -> Option<String> {
    let mut commands = String::new();
    for comeback in comebacks {
        if let Comeback::Run(command) = comeback {
            let escaped = command.replace('$', "$$").replace('%', "%%");
            let _ = writeln!(commands, "ExecStart=-/bin/sh -c '{escaped}'");
        }
    }
    let folder = "/etc/systemd/system";
    (!commands.is_empty()).then(|| {
        format!(
            "[Unit]\nDescription=Rebuild caches once after a rebase\nDefaultDependencies=no\n\
             RequiresMountsFor=/usr /var\nAfter=local-fs.target systemd-remount-fs.service\n\
             Before=sysinit.target systemd-update-done.service shutdown.target\nConflicts=shutdown.target\n\n\
             [Service]\nType=oneshot\nTimeoutStartSec=10min\n{commands}\
             ExecStart=-/bin/rm -f {folder}/{BOOT_UNIT} {folder}/sysinit.target.wants/{BOOT_UNIT}\n"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::{Comeback, boot_unit};
    use std::collections::BTreeSet;

    #[test]
    fn the_boot_unit_runs_each_command_once_and_removes_itself() {
        let paths: [&[u8]; 4] =
            [b"/etc/ld.so.cache", b"/usr/lib/x/gio/modules/giomodule.cache", b"/etc/.updated", b"/x"];
        let comebacks: BTreeSet<Comeback> = paths.iter().filter_map(|path| Comeback::of(path)).collect();
        assert_eq!(comebacks.len(), 3);
        let unit = boot_unit(&comebacks).expect("a unit");
        assert!(unit.contains("\nExecStart=-/bin/sh -c 'ldconfig'\n"), "{unit}");
        assert!(unit.contains("do $${d%%/gio/modules}/glib-2.0/gio-querymodules $$d; done'"), "{unit}");
        assert_eq!(unit.matches("ExecStart=").count(), 3);
        let own: BTreeSet<Comeback> = [Comeback::OnUse("apt")].into();
        assert_eq!(boot_unit(&own), None);
    }
}
