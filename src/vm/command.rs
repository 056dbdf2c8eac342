//! From a [`VmConfig`] to QEMU's command line. Nothing here touches the host.
//!
//! Paths with commas are safe: the disk goes in as JSON, other paths as words of their own or with
//! the commas doubled, which is QEMU's way to quote them.

use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::accel::{Accel, AccelChoice};
use super::error::VmError;

/// Where the guest's first serial port goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Serial {
    /// The terminal: the guest's output on stdout, stdin to the guest.
    #[default]
    Stdio,
    /// Nowhere.
    None,
    /// A file that receives the output; there is no input.
    File(PathBuf),
}

/// Everything about a machine but its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmConfig {
    /// The QEMU program: a path, or a name looked up in `PATH`.
    pub qemu: PathBuf,
    /// Name of the machine, shown in QEMU's process title and to its control socket.
    pub name: String,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Virtual processors.
    pub cpus: u32,
    /// Accelerator.
    pub accel: AccelChoice,
    /// Kernel to start directly, a bzImage or an ELF image with a PVH entry; without one the
    /// disk's own boot loader runs.
    pub kernel: Option<PathBuf>,
    /// Initial root for `kernel`.
    pub initrd: Option<PathBuf>,
    /// Command line for `kernel`.
    pub append: Option<String>,
    /// First serial port.
    pub serial: Serial,
    /// Port of the host's loopback address that leads to the guest's port 22.
    pub ssh_port: Option<u16>,
    /// How long the guest may take to power off before it is stopped.
    pub grace: Duration,
    /// Further QEMU arguments, after all others.
    pub extra: Vec<OsString>,
}

impl Default for VmConfig {
    /// 1 GiB, one processor, accelerator `auto`, the disk's own boot loader, console on the terminal.
    fn default() -> Self {
        Self {
            qemu: PathBuf::from("qemu-system-x86_64"),
            name: "cowshed".to_owned(),
            memory_mib: 1024,
            cpus: 1,
            accel: AccelChoice::Auto,
            kernel: None,
            initrd: None,
            append: None,
            serial: Serial::Stdio,
            ssh_port: None,
            grace: Duration::from_secs(60),
            extra: Vec::new(),
        }
    }
}

/// A disk as QEMU is told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskArgument<'a> {
    /// A raw file.
    File(&'a Path),
    /// A vhost-user-blk device on the inherited socket `socket`.
    VhostUser {
        /// The descriptor.
        socket: RawFd,
        /// Most queues of the device.
        queues: u16,
    },
}

/// QEMU's arguments for `config` on `disk`, with the control socket on the inherited descriptor `qmp`.
///
/// # Errors
/// [`VmError::NotUtf8`] when the disk's path cannot be written as JSON.
pub fn arguments(
    config: &VmConfig,
    disk: DiskArgument<'_>,
    accel: Accel,
    qmp: RawFd,
) -> Result<Vec<OsString>, VmError> {
    let mut args = Arguments::default();
    args.pair("-name", doubled_commas(OsStr::new(&config.name)));
    args.word("-no-user-config").word("-nodefaults");
    args.pair("-machine", "q35,vmport=off");
    match accel {
        Accel::Kvm => args.pair("-accel", "kvm").pair("-cpu", "host"),
        Accel::Tcg => args.pair("-accel", "tcg,thread=multi"),
    };
    args.pair("-m", format!("{}M", config.memory_mib));
    args.pair("-smp", config.cpus.to_string());
    args.pair("-display", "none");
    boot(&mut args, config);
    match disk {
        DiskArgument::File(path) => block_device(&mut args, path)?,
        DiskArgument::VhostUser { socket, queues } => vhost_user(&mut args, config, socket, queues),
    }
    network(&mut args, config);
    args.pair("-device", "virtio-rng-pci");
    serial(&mut args, &config.serial);
    args.pair("-chardev", format!("socket,id=qmp,fd={qmp}"));
    args.pair("-mon", "chardev=qmp,mode=control");
    args.0.extend(config.extra.iter().cloned());
    Ok(args.0)
}

#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn word(&mut self, word: impl Into<OsString>) -> &mut Self {
        self.0.push(word.into());
        self
    }

    fn pair(&mut self, option: &str, value: impl Into<OsString>) -> &mut Self {
        self.word(option).word(value)
    }
}

fn boot(args: &mut Arguments, config: &VmConfig) {
    if let Some(kernel) = &config.kernel {
        args.pair("-kernel", kernel);
    }
    if let Some(initrd) = &config.initrd {
        args.pair("-initrd", initrd);
    }
    if let Some(append) = &config.append {
        args.pair("-append", append);
    }
}

/// The disk: past the host's page cache (what the guest flushed is then durable in the image, and
/// a base is cached once, by the view), with the guest's discards and zero writes passed on.
fn block_device(args: &mut Arguments, disk: &Path) -> Result<(), VmError> {
    let filename = disk.to_str().ok_or_else(|| VmError::NotUtf8 { path: disk.to_owned() })?;
    let file: Value = json!({
        "driver": "file",
        "node-name": "disk-file",
        "filename": filename,
        "cache": { "direct": true, "no-flush": false },
        "discard": "unmap",
        "aio": "threads",
    });
    let raw: Value = json!({
        "driver": "raw",
        "node-name": "disk",
        "file": "disk-file",
        "cache": { "direct": true, "no-flush": false },
        "discard": "unmap",
        "detect-zeroes": "unmap",
    });
    args.pair("-blockdev", file.to_string());
    args.pair("-blockdev", raw.to_string());
    // 4 KiB is the subcluster: discards at that grain free host blocks.
    args.pair(
        "-device",
        "virtio-blk-pci,drive=disk,bootindex=1,discard=on,write-zeroes=on,\
         physical_block_size=4096,discard_granularity=4096",
    );
    Ok(())
}

/// The disk by vhost-user: its server sees the guest's memory, which must be shared for that. One queue for each
/// processor; what the disk can do is the server's to say.
fn vhost_user(args: &mut Arguments, config: &VmConfig, socket: RawFd, queues: u16) {
    let memory = config.memory_mib;
    args.pair("-object", format!("memory-backend-memfd,id=memory,size={memory}M,share=on"));
    args.pair("-machine", "memory-backend=memory");
    args.pair("-chardev", format!("socket,id=disk,fd={socket}"));
    let queues = config.cpus.min(u32::from(queues));
    args.pair("-device", format!("vhost-user-blk-pci,chardev=disk,bootindex=1,num-queues={queues}"));
}

fn network(args: &mut Arguments, config: &VmConfig) {
    let forward =
        config.ssh_port.map(|port| format!(",hostfwd=tcp:127.0.0.1:{port}-:22")).unwrap_or_default();
    args.pair("-netdev", format!("user,id=net{forward}"));
    args.pair("-device", "virtio-net-pci,netdev=net,romfile=");
}

fn serial(args: &mut Arguments, serial: &Serial) {
    match serial {
        // QEMU's stdin and stdout are pipes of ours, so its own handling of terminals and
        // signals stays out of the way.
        Serial::Stdio => {
            args.pair("-chardev", "stdio,id=console,mux=off,signal=off");
        }
        Serial::None => {
            args.pair("-serial", "none");
            return;
        }
        Serial::File(path) => {
            let mut value = OsString::from("file,id=console,path=");
            value.push(doubled_commas(path.as_os_str()));
            args.pair("-chardev", value);
        }
    }
    args.pair("-serial", "chardev:console");
}

/// QEMU's quoting of a value inside a comma-separated option.
fn doubled_commas(value: &OsStr) -> OsString {
    let mut out = Vec::with_capacity(value.len());
    for &byte in value.as_bytes() {
        out.push(byte);
        if byte == b',' {
            out.push(byte);
        }
    }
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn build(config: &VmConfig, disk: &str, accel: Accel) -> Vec<String> {
        arguments(config, DiskArgument::File(Path::new(disk)), accel, 7)
            .unwrap()
            .into_iter()
            .map(|word| word.into_string().unwrap())
            .collect()
    }

    /// The values that follow each `option`.
    fn values<'a>(args: &'a [String], option: &str) -> Vec<&'a str> {
        args.windows(2).filter(|pair| pair[0] == option).map(|pair| pair[1].as_str()).collect()
    }

    #[test]
    fn the_disk_is_opened_past_the_page_cache_with_discard_passed_on() {
        let args = build(&VmConfig::default(), "/mnt/clones/a,b\"c.raw", Accel::Tcg);
        let nodes: Vec<Value> =
            values(&args, "-blockdev").iter().map(|text| serde_json::from_str(text).unwrap()).collect();
        assert_eq!(nodes[0]["filename"], "/mnt/clones/a,b\"c.raw");
        assert_eq!(nodes[0]["cache"]["direct"], true);
        assert_eq!(nodes[0]["discard"], "unmap");
        assert_eq!(nodes[1]["file"], nodes[0]["node-name"]);
        assert_eq!(nodes[1]["detect-zeroes"], "unmap");
        let device = values(&args, "-device")[0];
        assert!(device.starts_with("virtio-blk-pci,drive=disk,"));
        assert!(device.contains("discard=on,write-zeroes=on"));
    }

    #[test]
    fn a_disk_whose_name_json_cannot_carry_is_refused() {
        let disk = Path::new(OsStr::from_bytes(b"/mnt/\xff.raw"));
        let disk = DiskArgument::File(disk);
        let error = arguments(&VmConfig::default(), disk, Accel::Tcg, 3).unwrap_err();
        assert!(error.to_string().contains("UTF-8"));
    }

    #[test]
    fn a_disk_by_vhost_user_has_shared_memory_and_a_queue_for_each_processor() {
        let words = |cpus| -> Vec<String> {
            let config = VmConfig { cpus, memory_mib: 512, ..VmConfig::default() };
            let disk = DiskArgument::VhostUser { socket: 9, queues: 4 };
            let words = arguments(&config, disk, Accel::Tcg, 7).unwrap();
            words.into_iter().map(|word| word.into_string().unwrap()).collect()
        };
        let args = words(2);
        assert_eq!(values(&args, "-object"), ["memory-backend-memfd,id=memory,size=512M,share=on"]);
        assert!(values(&args, "-machine").contains(&"memory-backend=memory"));
        assert!(values(&args, "-chardev").contains(&"socket,id=disk,fd=9"));
        let device = "vhost-user-blk-pci,chardev=disk,bootindex=1,num-queues=2";
        assert_eq!(values(&args, "-device")[0], device);
        assert!(values(&args, "-blockdev").is_empty());
        assert!(words(64).iter().any(|word| word.ends_with("num-queues=4")));
    }

    #[test]
    fn the_accelerator_sets_the_processor() {
        let kvm = build(&VmConfig::default(), "/d", Accel::Kvm);
        assert_eq!(values(&kvm, "-accel"), ["kvm"]);
        assert_eq!(values(&kvm, "-cpu"), ["host"]);
        let tcg = build(&VmConfig::default(), "/d", Accel::Tcg);
        assert_eq!(values(&tcg, "-accel"), ["tcg,thread=multi"]);
        assert!(values(&tcg, "-cpu").is_empty());
    }

    #[test]
    fn kernel_initrd_and_command_line_are_words_of_their_own() {
        let config = VmConfig {
            kernel: Some("/k,1".into()),
            initrd: Some("/i".into()),
            append: Some("root=/dev/vda1 a,b".to_owned()),
            ..VmConfig::default()
        };
        let args = build(&config, "/d", Accel::Tcg);
        assert_eq!(values(&args, "-kernel"), ["/k,1"]);
        assert_eq!(values(&args, "-initrd"), ["/i"]);
        assert_eq!(values(&args, "-append"), ["root=/dev/vda1 a,b"]);
        let plain = build(&VmConfig::default(), "/d", Accel::Tcg);
        assert!(!plain.iter().any(|word| word == "-kernel"));
    }

    #[test]
    fn ssh_is_forwarded_from_the_loopback_address_only() {
        let plain = build(&VmConfig::default(), "/d", Accel::Tcg);
        assert_eq!(values(&plain, "-netdev"), ["user,id=net"]);
        let config = VmConfig { ssh_port: Some(2222), ..VmConfig::default() };
        let args = build(&config, "/d", Accel::Tcg);
        assert_eq!(values(&args, "-netdev"), ["user,id=net,hostfwd=tcp:127.0.0.1:2222-:22"]);
    }

    #[test]
    fn the_serial_port_goes_to_the_terminal_a_file_or_nowhere() {
        let with = |serial| VmConfig { serial, ..VmConfig::default() };
        let stdio = build(&with(Serial::Stdio), "/d", Accel::Tcg);
        assert_eq!(values(&stdio, "-chardev")[0], "stdio,id=console,mux=off,signal=off");
        let file = build(&with(Serial::File("/log,1".into())), "/d", Accel::Tcg);
        assert_eq!(values(&file, "-chardev")[0], "file,id=console,path=/log,,1");
        assert_eq!(values(&file, "-serial"), ["chardev:console"]);
        let none = build(&with(Serial::None), "/d", Accel::Tcg);
        assert_eq!(values(&none, "-serial"), ["none"]);
    }

    #[test]
    fn extra_arguments_come_last_and_the_control_socket_is_inherited() {
        let config = VmConfig {
            name: "a,b".to_owned(),
            extra: vec!["-device".into(), "usb-ehci".into()],
            ..VmConfig::default()
        };
        let args = build(&config, "/d", Accel::Tcg);
        assert_eq!(args[args.len() - 2..], ["-device", "usb-ehci"]);
        assert_eq!(values(&args, "-name"), ["a,,b"]);
        assert!(values(&args, "-chardev").contains(&"socket,id=qmp,fd=7"));
        assert_eq!(values(&args, "-mon"), ["chardev=qmp,mode=control"]);
    }
}
