//! Real machines under QEMU, on plain copies of the guest image.
#![allow(clippy::unwrap_used)]

#[path = "common/guest.rs"]
mod common;

use common::{append, guest};
use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use cowshed::vm::{AccelChoice, Drive, Machine, Serial, SignalWatch, Started, VmConfig, VmError, VmExit};
use tempfile::TempDir;

/// No boot of the guest takes longer than this, even with two on a busy host.
const BOOT_LIMIT: Duration = Duration::from_secs(240);

/// A signal reaches every run of a process, so tests that share one take turns.
static TURN: Mutex<()> = Mutex::new(());

fn run(config: &VmConfig, disk: &Path, notify: &dyn Fn(&str)) -> Result<VmExit, VmError> {
    cowshed::vm::run(config, &Drive::File(disk), &mut SignalWatch::install().unwrap(), notify)
}

struct Guest {
    folder: PathBuf,
    work: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Guest {
    fn new() -> Self {
        Self {
            folder: guest(),
            work: tempfile::tempdir().unwrap(),
            _turn: TURN.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// A private copy of the disk, sparse as the original.
    fn disk(&self) -> PathBuf {
        let disk = self.work.path().join("disk, copy.raw");
        let mut copy = Command::new("cp");
        copy.args(["--sparse=always", "--reflink=auto"]).arg(self.folder.join("disk.raw")).arg(&disk);
        succeed(&mut copy);
        disk
    }

    fn log(&self) -> PathBuf {
        self.work.path().join("serial, log")
    }

    fn config(&self, job: Option<&str>) -> VmConfig {
        let own = || fs::read_to_string(self.folder.join("cmdline")).unwrap();
        let append = job.map_or_else(own, |job| append(&self.folder, job));
        VmConfig {
            memory_mib: 512,
            kernel: Some(self.folder.join("vmlinux")),
            initrd: Some(self.folder.join("initrd.img")),
            append: Some(append),
            serial: Serial::File(self.log()),
            ..VmConfig::default()
        }
    }

    fn read_log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log()).unwrap_or_default()).into_owned()
    }

    /// The root partition, cut out into a file.
    fn root_partition(&self, disk: &Path) -> PathBuf {
        let part = self.work.path().join("part.raw");
        let mut cut = Command::new("dd");
        cut.args(["bs=1M", "skip=2", "conv=sparse", "status=none"])
            .arg(join("if=", disk))
            .arg(join("of=", &part));
        succeed(&mut cut);
        part
    }
}

fn join(prefix: &str, path: &Path) -> String {
    format!("{prefix}{}", path.display())
}

fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    output
}

/// The filesystem must have been left clean: e2fsck -n does not replay a journal, so a guest that
/// was cut off fails here.
fn assert_clean(partition: &Path) {
    let output = succeed(Command::new("e2fsck").arg("-fn").arg(partition));
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(!text.contains("journal"), "{text}");
}

fn read_guest_file(partition: &Path, path: &str) -> String {
    let mut debugfs = Command::new("debugfs");
    debugfs.arg("-R").arg(format!("cat {path}")).arg(partition);
    String::from_utf8(succeed(&mut debugfs).stdout).unwrap()
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < BOOT_LIMIT, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_guest_runs_its_job_writes_its_disk_and_exits_with_zero() {
    let guest = Guest::new();
    let disk = guest.disk();
    let before = fs::metadata(&disk).unwrap();
    let job = "dd if=/dev/urandom of=/root/junk bs=1M count=64 2>&1 && sync && rm /root/junk\n\
               fstrim -v / && echo written by the guest > /root/note && uname -s";

    let exit = run(&guest.config(Some(job)), &disk, &|note| println!("{note}")).unwrap();

    let log = guest.read_log();
    assert_eq!((exit.code, exit.forced_by), (0, None), "{log}");
    assert!(exit.shutdown.unwrap().guest, "{log}");
    assert!(log.contains("Linux"), "{log}");
    assert!(log.contains("cowshed-job: exit 0"), "{log}");
    let partition = guest.root_partition(&disk);
    assert_clean(&partition);
    assert_eq!(read_guest_file(&partition, "/root/note"), "written by the guest\n");
    // The 64 MiB of random bytes were given back to the host by the guest's discard.
    use std::os::unix::fs::MetadataExt;
    let grown = fs::metadata(&disk).unwrap().blocks().saturating_sub(before.blocks());
    assert!(grown * 512 < 48 << 20, "the disk grew by {} bytes", grown * 512);
}

#[test]
fn ctrl_c_powers_a_running_guest_off_cleanly() {
    let guest = Guest::new();
    let disk = guest.disk();
    let config = guest.config(None);
    let exit = thread::scope(|scope| {
        let running = scope.spawn(|| run(&config, &disk, &|note| println!("{note}")));
        wait_until("the login prompt", || guest.read_log().contains("login:") || running.is_finished());
        assert!(!running.is_finished(), "{}", guest.read_log());
        nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGINT).unwrap();
        running.join().unwrap().unwrap()
    });
    let log = guest.read_log();
    assert_eq!((exit.code, exit.forced_by), (0, None), "{log}");
    let shutdown = exit.shutdown.unwrap();
    assert_eq!(shutdown.reason, "guest-shutdown", "{log}");
    assert_clean(&guest.root_partition(&disk));
}

#[test]
fn the_forwarded_port_reaches_the_guest() {
    let guest = Guest::new();
    let disk = guest.disk();
    let probe = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = probe.local_addr().unwrap();
    drop(probe);
    let job = "perl -MIO::Socket::INET -e '$s = IO::Socket::INET->new(LocalPort => 22, Listen => 1) \
               or die; $c = $s->accept; print $c \"hello from the guest\\n\"; close $c'";
    let config = VmConfig { ssh_port: Some(address.port()), ..guest.config(Some(job)) };
    thread::scope(|scope| {
        let running = scope.spawn(|| run(&config, &disk, &|_| {}));
        let mut greeting = String::new();
        // QEMU accepts at once and hangs up as long as nobody listens inside.
        wait_until("the guest's greeting", || {
            let answer =
                TcpStream::connect(address).and_then(|mut stream| stream.read_to_string(&mut greeting));
            running.is_finished() || answer.is_ok_and(|length| length > 0)
        });
        assert_eq!(greeting, "hello from the guest\n", "{}", guest.read_log());
        assert_eq!(running.join().unwrap().unwrap().code, 0);
    });
}

#[test]
fn a_machine_is_paused_asked_and_ended_over_its_control_socket() {
    let guest = Guest::new();
    let disk = guest.disk();
    let limit = Duration::from_secs(60);
    let started = Machine::start(&guest.config(None), &Drive::File(&disk), cowshed::vm::Accel::Tcg).unwrap();
    let Started::Running(mut machine) = started else {
        panic!("QEMU ended at once: {started:?}");
    };
    let qmp = machine.qmp().unwrap();
    assert_eq!(qmp.query_status(limit).unwrap(), "running");
    qmp.execute("stop", &serde_json::Value::Null, limit).unwrap();
    assert_eq!(qmp.query_status(limit).unwrap(), "paused");
    machine.quit();
    assert!(machine.wait().unwrap().success());
    assert!(!machine.shutdown().unwrap().guest);
}

#[test]
fn dropping_a_machine_leaves_no_process() {
    let guest = Guest::new();
    let disk = guest.disk();
    let started = Machine::start(&guest.config(None), &Drive::File(&disk), cowshed::vm::Accel::Tcg).unwrap();
    let Started::Running(machine) = started else {
        panic!("QEMU ended at once: {started:?}");
    };
    let process = PathBuf::from(format!("/proc/{}", machine.id()));
    assert!(process.exists());
    drop(machine);
    assert!(!process.exists());
}

#[test]
fn qemu_that_refuses_its_arguments_passes_its_exit_code_on() {
    let guest = Guest::new();
    let disk = guest.disk();
    let config =
        VmConfig { accel: AccelChoice::Tcg, extra: vec!["-no-such-option".into()], ..guest.config(None) };
    let exit = run(&config, &disk, &|_| {}).unwrap();
    assert_eq!((exit.code, exit.shutdown), (1, None));
}

#[test]
fn what_is_missing_is_named_before_anything_starts() {
    let guest = Guest::new();
    let disk = guest.disk();
    let message = |config: &VmConfig, disk: &Path| -> String {
        let error: VmError = run(config, disk, &|_| {}).unwrap_err();
        error.to_string()
    };
    let tcg = VmConfig { accel: AccelChoice::Tcg, ..guest.config(None) };

    let no_qemu = VmConfig { qemu: "qemu-of-another-planet".into(), ..tcg.clone() };
    let text = message(&no_qemu, &disk);
    assert!(text.contains("qemu-of-another-planet") && text.contains("qemu-system-x86"));

    let no_kernel = VmConfig { kernel: Some("/no/kernel".into()), ..tcg.clone() };
    assert!(message(&no_kernel, &disk).contains("the kernel /no/kernel"));
    assert!(message(&tcg, Path::new("/no/disk")).contains("the disk /no/disk"));
    assert!(message(&tcg, Path::new("/")).contains("the disk /"));
}
