//! A real system boots after each change of its disk's size, and finds its files.
#![allow(clippy::unwrap_used)]

#[path = "common/cli.rs"]
mod common;
#[path = "common/guest.rs"]
mod system;

use common::Shed;
use common::store::{must, qemu_check};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use system::{append, guest};

/// What the guest does: it looks at all files of its packages, and writes down how large its root is.
const JOB: &str = "dpkg --verify >/root/changed 2>&1; findmnt -nbo SIZE / >/root/size; \
                   dd if=/dev/urandom of=/root/noise bs=1M count=20 status=none; sha256sum /root/noise >/root/sum";

/// Boots the clone until it powers off.
fn boot(shed: &Shed, folder: &Path) {
    let append = append(folder, JOB);
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let log = format!("file:{}", shed.path("serial").display());
    let (kernel, initrd) = (file("vmlinux"), file("initrd.img"));
    let mut command: Command = shed.command(&["run", "web", "--memory", "512M", "--serial", &log]);
    command.args(["--kernel", &kernel, "--initrd", &initrd, "--append", &append]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&fs::read(shed.path("serial")).unwrap_or_default()).into_owned();
    assert!(output.status.success(), "{output:?}\n{said}");
}

/// What a file of the guest's root holds.
fn read(part: &Path, path: &str) -> String {
    let output = Command::new("debugfs").args(["-R", &format!("cat {path}")]).arg(part).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_guest_boots_at_each_size_with_all_files_of_its_packages() {
    let (shed, folder) = (Shed::new(), guest());
    let image = folder.join("disk.raw");
    shed.ok(&["import", image.to_str().unwrap(), "--name", "deb", "--format", "raw"]);
    shed.ok(&["clone", "deb", "web"]);
    let mut sum = String::new();
    for (size, least, most) in [("1G", 900, 1024), ("5G", 4600, 5120)] {
        shed.ok(&["resize", "web", size]);
        boot(&shed, &folder);
        qemu_check(&shed.delta("web"));
        let view = shed.mount();
        let part = view.dir.join("clones/web.p1.raw");
        must("e2fsck", &["-fn", part.to_str().unwrap()]);
        let said = must("sgdisk", &["-v", view.clone_file("web").to_str().unwrap()]);
        assert!(said.contains("No problems found"), "{said}");
        // No file of a package has gone or has another sum: but for settings, and for pages that the image lacks.
        let changed = read(&part, "/root/changed");
        let is_fine = |line: &str| line.contains(" c /") || line.contains(" /usr/share/");
        assert!(changed.lines().all(is_fine), "{changed}");
        let root: u64 = read(&part, "/root/size").trim().parse().unwrap();
        assert!((least << 20..most << 20).contains(&root), "{size}: {root}");
        let now = read(&part, "/root/sum");
        assert_ne!(now, sum, "the guest has not run at {size}");
        sum = now;
        view.unmount();
    }
}
