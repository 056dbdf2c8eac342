//! Formats that `qemu-img` reads for us: a child with limits, without a network, that gets one open file.

use super::import::Format;
use super::source::SourceFile;
use super::{Progress, check_cancelled};
use crate::confined::{self, Limits};
use crate::error::{Error, Kind, Result};
use crate::store::DISK_MAX;
use crate::units::{GIB, MIB};
use landlock::{
    ABI, AccessFs, AccessNet, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr,
    RulesetError,
};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

const ADDRESS_SPACE: u64 = 4 * GIB;
/// Seconds of processor time: some, and one for each of these bytes of the source.
const CPU_SECONDS: u64 = 120;
const CPU_BYTES: u64 = 4 * MIB;
/// More of what a child says is thrown away.
const OUTPUT_MAX: u64 = 64 << 10;

/// The name that qemu has for a format.
fn driver(format: Format) -> &'static str {
    match format {
        Format::Raw => "raw",
        Format::Qcow2 => "qcow2",
        Format::Vmdk => "vmdk",
        Format::Vdi => "vdi",
        Format::Vhd => "vpc",
        Format::Vhdx => "vhdx",
    }
}

/// Writes the disk in `source` to the new raw file `out`, sparse.
///
/// # Errors
/// `Corrupt` with what `qemu-img` says; `Unsupported` for a disk that needs other files; `NoSpace`; `Interrupted`.
pub(super) fn convert(
    source: &SourceFile,
    format: Format,
    out: &Path,
    progress: &dyn Progress,
) -> Result<()> {
    if format == Format::Vmdk {
        refuse_parts(&source.file)?;
    }
    let len = source.file.metadata().map_err(|error| Error::io("cannot read the source", error))?.len();
    let cpu = CPU_SECONDS + len / CPU_BYTES;
    let limits = |file| Limits { memory: ADDRESS_SPACE, cpu, file, words: OUTPUT_MAX };
    let fd = source.file.as_raw_fd();
    // No name of the source reaches qemu, and no backing file is opened whatever the image says.
    let image = serde_json::json!({
        "driver": driver(format),
        "file": {"driver": "file", "filename": format!("/proc/self/fd/{fd}")},
        "backing": null,
    });
    let image = format!("json:{image}");
    let mut info = Command::new("qemu-img");
    info.args(["info", "--output=json", &image]);
    let size = virtual_size(&run(info, fd, None, limits(MIB), progress)?)?;
    if !(1..=DISK_MAX).contains(&size) {
        return Err(Error::invalid(format!("its disk has {size} bytes; 1 byte to 16 TiB are taken")));
    }
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-O", "raw", &image]).arg(out);
    run(convert, fd, out.parent(), limits(size + MIB), progress).map(|_| ())
}

/// A vmdk can name other files as its parts or its parent; those would be opened.
fn refuse_parts(file: &File) -> Result<()> {
    let cannot = |error| Error::io("cannot read the source", error);
    let mut head = [0; 512];
    file.read_exact_at(&mut head, 0).map_err(cannot)?;
    let field =
        |at: usize| head[at..at + 8].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
    // Capacity, place and length of the descriptor, in sectors: "Virtual Disk Format 5.0", SparseExtentHeader.
    let (capacity, place, sectors) = (field(12), field(28), field(36));
    let refuse = || {
        Err(Error::unsupported(
            "a vmdk that stands on other files; make one file of it: qemu-img convert -O qcow2 IN.vmdk OUT.qcow2",
        ))
    };
    if !head.starts_with(b"KDMV") || capacity == 0 {
        return refuse();
    }
    let mut descriptor = vec![0; crate::units::index(sectors.min(128) * 512)];
    let read = file.read_at(&mut descriptor, place.saturating_mul(512)).map_err(cannot)?;
    let text = String::from_utf8_lossy(&descriptor[..read]).to_lowercase();
    if text.contains("parentfilenamehint") {
        return refuse();
    }
    Ok(())
}

fn virtual_size(json: &[u8]) -> Result<u64> {
    serde_json::from_slice::<serde_json::Value>(json)
        .ok()
        .and_then(|info| info.get("virtual-size")?.as_u64())
        .ok_or_else(|| Error::corrupt("qemu-img does not say how large its disk is"))
}

/// Runs `command` confined; only files below `writes` can be changed, where the kernel has Landlock.
fn run(
    mut command: Command,
    fd: RawFd,
    writes: Option<&Path>,
    limits: Limits,
    progress: &dyn Progress,
) -> Result<Vec<u8>> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.env_clear().env("PATH", path).env("LC_ALL", "C").current_dir("/");
    command.stdin(Stdio::null());
    let rules =
        rules(writes).map_err(|error| Error::io("cannot confine qemu-img", io::Error::other(error)))?;
    let ended = confined::run(command, limits, Some(fd), rules, &|| progress.cancelled());
    let ended = ended.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            Error::new(Kind::NotFound, "qemu-img is needed for this format: install the package qemu-utils")
        }
        _ => Error::io("cannot run qemu-img", error),
    })?;
    match ended {
        Some(ended) if ended.status.success() => Ok(ended.stdout),
        Some(ended) => Err(failed(ended.status, &String::from_utf8_lossy(&ended.stderr))),
        None => check_cancelled(progress).map(|()| Vec::new()),
    }
}

fn failed(status: ExitStatus, said: &str) -> Error {
    match status.signal() {
        Some(libc::SIGXCPU) => {
            return Error::corrupt(
                "qemu-img used more processor time than such a file needs; it was stopped",
            );
        }
        Some(libc::SIGKILL) => {
            return Error::new(
                Kind::Io,
                "qemu-img was killed: the host may be short of memory (its kernel log tells), or somebody did it",
            );
        }
        Some(libc::SIGXFSZ) => {
            return Error::corrupt("qemu-img wrote more than the disk's size; it was stopped");
        }
        _ => {}
    }
    let said: String = said.trim().chars().take(500).flat_map(char::escape_default).collect();
    let kind = if said.contains("No space left on device") { Kind::NoSpace } else { Kind::Corrupt };
    Error::new(kind, format!("qemu-img cannot read it ({status}): {said}"))
}

/// Nothing is written, made or removed but below `writes`, and no TCP connection is made: as far as the kernel knows how.
fn rules(writes: Option<&Path>) -> std::result::Result<RulesetCreated, RulesetError> {
    let changes = AccessFs::from_write(ABI::V5);
    let rules = Ruleset::default()
        .handle_access(changes)?
        .handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp)?
        .create()?;
    let Some(folder) = writes.and_then(|folder| PathFd::new(folder).ok()) else { return Ok(rules) };
    rules.add_rule(PathBeneath::new(folder, changes))
}
