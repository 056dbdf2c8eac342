//! A real guest on served disks: its root and a hot-plugged one, whose servers are killed while it works.
#![allow(clippy::unwrap_used)]

#[path = "common/cli.rs"]
mod common;
#[path = "common/guest.rs"]
mod system;

use common::store::{file_digest, must, qemu_check};
use common::{Shed, until};
use cowshed::vm::qmp::Qmp;
use serde_json::json;
use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use system::{append, guest};

/// No step of the guest takes longer, even on a busy host.
const PATIENCE: Duration = Duration::from_secs(240);
const LIMIT: Duration = Duration::from_secs(60);

const JOB: &str = r#"
mark() { sync; echo "mark $1."; }
echo "root is $(cat /sys/block/vda/serial)."
mark ready
until [ -b /dev/vdb ]; do sleep 0.1; done
echo "plugged $(cat /sys/block/vdb/serial) $(cat /sys/block/vdb/queue/discard_granularity) $(ls /sys/block/vdb/mq | wc -l)."
dd if=/dev/urandom of=/srv/pattern bs=64k count=64 status=none
dd if=/srv/pattern of=/dev/vdb bs=64k oflag=direct status=none
mark load
for n in $(seq 1 24); do
    dd if=/srv/pattern of=/dev/vdb bs=64k skip=$((n % 64)) seek=$((n * 7 % 128)) count=1 oflag=direct conv=notrunc status=none
    dd if=/srv/pattern of=/srv/copy$n bs=64k count=4 conv=fsync status=none
done
mark loaded
echo 3 > /proc/sys/vm/drop_caches
for n in $(seq 1 24); do cmp -n 262144 /srv/pattern /srv/copy$n || echo "bad copy $n."; done
blkdiscard -o 1048576 -l 1048576 /dev/vdb
echo "sum $(dd if=/dev/vdb bs=1M iflag=direct status=none | sha256sum | cut -c 1-64)."
rm /srv/pattern /srv/copy*; fstrim /
mark end
"#;

/// A process that is killed when the test ends.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn socket(shed: &Shed, clone: &str) -> PathBuf {
    shed.path(&format!("{clone}.sock"))
}

fn serve(shed: &Shed, clone: &str) -> Process {
    let log = shed.path(&format!("{clone}.log"));
    let socket = socket(shed, clone);
    let child = shed
        .command(&["serve", clone, "--vhost-user", socket.to_str().unwrap()])
        .stderr(File::create(&log).unwrap())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    until("the server is ready", || fs::read_to_string(&log).unwrap().contains("is served at"));
    Process(child)
}

/// QEMU with the clone `web` as its root, and a chardev for `data`.
fn machine(shed: &Shed) -> Process {
    let guest = guest();
    let append = append(&guest, JOB);
    let chardev =
        |clone: &str| format!("socket,id={clone},path={},reconnect-ms=200", socket(shed, clone).display());
    let child = Command::new("qemu-system-x86_64")
        .args(["-no-user-config", "-nodefaults", "-accel", "tcg,thread=multi", "-smp", "2", "-m", "512M"])
        .args(["-object", "memory-backend-memfd,id=mem,size=512M,share=on", "-M", "q35,memory-backend=mem"])
        .args(["-display", "none", "-device", "pcie-root-port,id=plug,chassis=1"])
        .arg("-kernel")
        .arg(guest.join("vmlinux"))
        .arg("-initrd")
        .arg(guest.join("initrd.img"))
        .args(["-append", &append])
        .args(["-chardev", &chardev("web"), "-device", "vhost-user-blk-pci,chardev=web,num-queues=2"])
        .args(["-chardev", &chardev("data")])
        .arg("-serial")
        .arg(format!("file:{}", shed.path("console").display()))
        .arg("-qmp")
        .arg(format!("unix:{},server=on,wait=off", shed.path("qmp").display()))
        .stdin(Stdio::null())
        .stderr(File::create(shed.path("qemu.log")).unwrap())
        .spawn()
        .unwrap();
    Process(child)
}

/// What the guest has said.
fn said(shed: &Shed) -> String {
    String::from_utf8_lossy(&fs::read(shed.path("console")).unwrap_or_default()).into_owned()
}

fn wait_for_mark(shed: &Shed, machine: &mut Process, name: &str) {
    let start = Instant::now();
    while !said(shed).contains(&format!("mark {name}.")) {
        let ended = machine.0.try_wait().unwrap().is_some_and(|status| !status.success());
        let late = start.elapsed() > PATIENCE;
        let words = || fs::read_to_string(shed.path("qemu.log")).unwrap();
        assert!(!ended && !late, "no mark {name}: {}\n{}", said(shed), words());
        sleep(Duration::from_millis(50));
    }
}

fn digest(shed: &Shed, clone: &str) -> String {
    let out = shed.path("out.raw");
    shed.ok(&["export", clone, out.to_str().unwrap(), "--format", "raw", "--force"]);
    let sum = Command::new("sha256sum").arg(&out).output().unwrap();
    String::from_utf8(sum.stdout).unwrap()[..64].to_owned()
}

#[test]
fn a_guest_keeps_all_it_wrote_while_the_servers_of_its_disks_are_killed() {
    let shed = Shed::with_base();
    shed.ok(&["clone", "deb", "data"]);
    shed.ok(&["import", guest().join("disk.raw").to_str().unwrap(), "--name", "root"]);
    shed.ok(&["clone", "root", "web"]);
    let bases = ["bases/deb/1/disk.raw", "bases/root/1/disk.raw"].map(|base| shed.root().join(base));
    let before = bases.each_ref().map(|base| file_digest(base));
    let (mut web, mut data) = (serve(&shed, "web"), serve(&shed, "data"));
    let mut machine = machine(&shed);
    let said = || said(&shed);
    let mut mark = |name: &str| wait_for_mark(&shed, &mut machine, name);
    mark("ready");
    assert!(said().contains("root is web."), "{}", said());
    let mut qmp = Qmp::handshake(UnixStream::connect(shed.path("qmp")).unwrap(), LIMIT).unwrap();
    let device = json!({
        "driver": "vhost-user-blk-pci", "id": "disk", "chardev": "data", "bus": "plug", "num-queues": 2
    });
    qmp.execute("device_add", &device, LIMIT).unwrap();
    mark("load");
    assert!(said().contains("plugged data 4096 2."), "{}", said());
    let mut kills = 0;
    while !said().contains("mark loaded.") && kills < 8 {
        for (clone, server) in [("web", &mut web), ("data", &mut data)] {
            sleep(Duration::from_millis(150));
            server.0.kill().unwrap();
            server.0.wait().unwrap();
            *server = serve(&shed, clone);
            kills += 1;
        }
    }
    assert!(kills >= 2, "the load ended after {kills} kills");
    mark("end");
    let status = machine.0.wait().unwrap();
    assert!(status.success() && said().contains("cowshed-job: exit 0"), "{status}: {}", said());
    assert!(!said().contains("bad copy") && !said().contains("error"), "{}", said());
    for server in [&mut web, &mut data] {
        must("kill", &["-TERM", &server.0.id().to_string()]);
        assert!(server.0.wait().unwrap().success());
    }

    let sum = said().split("sum ").nth(1).unwrap()[..64].to_owned();
    assert_eq!(digest(&shed, "data"), sum, "what the guest read at its end is in the clone");
    for clone in ["web", "data"] {
        // What killed servers had set aside is leaked, and that is all.
        assert!(shed.output(&["check", clone, "--repair"]).status.success());
        qemu_check(&shed.delta(clone));
    }
    assert_eq!(bases.each_ref().map(|base| file_digest(base)), before);
    digest(&shed, "web");
    let (out, part) = (shed.path("out.raw"), shed.path("part.raw"));
    let (from, to) = (format!("if={}", out.display()), format!("of={}", part.display()));
    must("dd", &["bs=1M", "skip=2", "conv=sparse", "status=none", &from, &to]);
    must("e2fsck", &["-fn", part.to_str().unwrap()]);
}
