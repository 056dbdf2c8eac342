//! What a running guest gives up goes back to the host at once: host blocks are measured, not what the guest says.
#![allow(clippy::unwrap_used)]

#[path = "common/cli.rs"]
mod common;
#[path = "common/guest.rs"]
mod system;

use common::Shed;
use common::store::{file_digest, must, qemu_check};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};
use system::{append, guest};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// No step of the guest takes longer, even on a busy host.
const PATIENCE: Duration = Duration::from_secs(240);

/// What the guest does. After each mark it waits, so that the host can look.
const JOB: &str = "
mark() { sync; echo \"mark $1.\"; sleep 6; }
mark start
dd if=/dev/urandom of=/srv/one bs=1M count=48 status=none; mark written
rm /srv/one; fstrim /; mark trimmed
mount -o remount,discard /
dd if=/dev/urandom of=/srv/two bs=1M count=48 status=none; mark again
rm /srv/two; mark removed
dd if=/dev/urandom of=/dev/vda14 bs=1M count=1 oflag=direct status=none; mark partition
for n in $(seq 0 2 126); do blkdiscard -f -o $((n * 4096)) -l 4096 /dev/vda14; done; mark pages
dd if=/dev/zero of=/dev/vda14 bs=64k count=8 oflag=direct status=none; mark zeros
blkdiscard -f /dev/vda14; mark blkdiscard
";

#[test]
fn what_a_guest_discards_is_the_hosts_again_while_it_runs() {
    let guest = guest();
    let shed = Shed::new();
    shed.ok(&["import", guest.join("disk.raw").to_str().unwrap(), "--name", "deb"]);
    let base = file_digest(&shed.base_disk());
    shed.ok(&["clone", "deb", "web"]);
    let console = shed.path("console");
    let append = append(&guest, JOB);
    let [kernel, initrd] =
        ["vmlinux", "initrd.img"].map(|name| guest.join(name).to_str().unwrap().to_owned());
    let arguments =
        ["run", "web", "--memory", "512", "--kernel", &kernel, "--initrd", &initrd, "--append", &append];
    let mut child = shed
        .command(&arguments)
        .stdin(Stdio::null())
        .stdout(File::create(&console).unwrap())
        .stderr(File::create(shed.path("messages")).unwrap())
        .spawn()
        .unwrap();
    let said = || String::from_utf8_lossy(&fs::read(&console).unwrap()).into_owned();
    let blocks = || fs::metadata(shed.delta("web")).unwrap().blocks() * 512;
    let mark = |name: &str| {
        let start = Instant::now();
        while !said().contains(&format!("mark {name}.")) {
            assert!(start.elapsed() < PATIENCE, "no mark {name}: {}", said());
            sleep(Duration::from_millis(50));
        }
        blocks()
    };
    // What was freed goes with the next flush, which the server makes by itself when nothing comes.
    let falls = |to: u64, what: &str| {
        let start = Instant::now();
        while blocks() > to {
            assert!(start.elapsed() < Duration::from_secs(5), "{what}: {} bytes, not {to}", blocks());
            sleep(Duration::from_millis(50));
        }
    };

    let start = mark("start");
    let written = mark("written");
    assert!(written > start + 48 * MIB, "{start} -> {written}");
    mark("trimmed");
    falls(start + 4 * MIB, "fstrim");
    let again = mark("again");
    assert!(again > start + 48 * MIB, "{start} -> {again}");
    mark("removed");
    falls(start + 4 * MIB, "a filesystem that is mounted with discard");
    // Half of the pages of the first 512 KiB, one by one; the rest of the guest writes a little now and then.
    let partition = mark("partition");
    mark("pages");
    falls(partition - 256 * KIB + 128 * KIB, "discards of single pages");
    mark("zeros");
    falls(partition - 512 * KIB + 128 * KIB, "zeros that are written");
    mark("blkdiscard");
    falls(partition - MIB + 128 * KIB, "blkdiscard");

    let ended = child.wait().unwrap();
    assert!(ended.success() && said().contains("cowshed-job: exit 0"), "{}", said());
    qemu_check(&shed.delta("web"));
    assert_eq!(file_digest(&shed.base_disk()), base);
    let part = shed.path("part.raw");
    let out = shed.path("out.raw");
    shed.ok(&["export", "web", out.to_str().unwrap(), "--format", "raw"]);
    must(
        "dd",
        &[
            "bs=1M",
            "skip=2",
            "conv=sparse",
            "status=none",
            &format!("if={}", out.display()),
            &format!("of={}", part.display()),
        ],
    );
    must("e2fsck", &["-fn", part.to_str().unwrap()]);
}
