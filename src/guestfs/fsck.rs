//! Whether a filesystem is in order: what `e2fsck -fn` says of it, without a mount, a loop device or a copy.
//!
//! `e2fsck` wants a file and reads only metadata, so it gets a sparse file that has just that: superblock, descriptors,
//! bitmaps, inode tables, folders, maps of blocks, attributes. A confined child lists where those are. A list that
//! lacks a block can only make `e2fsck` find damage, for zeros are in its place.

use super::edit::{Answer, Limits, Line, Mode, Peer};
use super::partitions::Bytes;
use crate::error::{Error, Kind, Result};
use crate::units::{GIB, GuestOffset, MIB, index};
use crate::zero::is_zero;
use landlock::{
    ABI, Access, AccessFs, AccessNet, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetError,
};
use nix::sys::resource::{Resource, setrlimit};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

const ADDRESS_SPACE: u64 = 16 * GIB;
/// Seconds of processor time: some, and one for each of these bytes of the filesystem's place.
const CPU_SECONDS: u64 = 300;
const CPU_BYTES: u64 = GIB;
/// More of what `e2fsck` says is thrown away.
const WORDS: usize = 4000;
const PIECE: u64 = MIB;
const GRAIN: usize = 4096;

/// What `e2fsck` found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Clean,
    /// Damage, in its own words.
    Damaged(String),
}

/// Checks the ext2, ext3 or ext4 filesystem in `volume` with `e2fsck -fn`.
///
/// `program` is our own one, which knows [`super::edit::COMMAND`]; in `folder` a file without a name takes as many bytes
/// as the filesystem has metadata.
///
/// # Errors
/// `NotFound` without `e2fsck`; `Io`, `NoSpace`; whatever reading the disk gives.
pub fn fsck(program: &Path, volume: &dyn Bytes, folder: &Path) -> Result<Verdict> {
    let cannot = |error| Error::io("cannot write the file that e2fsck reads", error);
    let file = tempfile::tempfile_in(folder).map_err(cannot)?;
    file.set_len(volume.size()).map_err(cannot)?;
    let mut scan = Scan { volume, file: &file, copied: 0, end: None };
    let mut line = Line::start(program, volume.size(), Mode::Scan, Limits::default())?;
    while scan.end.is_none() {
        line.turn(&mut scan)?;
    }
    if let Some(Some(words)) = scan.end {
        return Ok(Verdict::Damaged(words));
    }
    judge(&file, volume.size())
}

/// The parent of a child that lists metadata.
struct Scan<'a> {
    volume: &'a dyn Bytes,
    file: &'a File,
    copied: u64,
    /// That it is done, and what made it impossible.
    end: Option<Option<String>>,
}

impl Scan<'_> {
    fn copy(&mut self, at: u64, len: u64) -> Result<()> {
        let size = self.volume.size();
        let end = at.checked_add(len).filter(|end| *end <= size);
        self.copied = self.copied.saturating_add(len);
        // Damaged metadata may name a block twice; a hostile list has no end.
        let (Some(end), true) = (end, self.copied <= size.saturating_mul(4)) else {
            return Err(Error::corrupt("the filesystem leads outside of its place"));
        };
        let mut place = at;
        while place < end {
            let mut buf = vec![0; index((end - place).min(PIECE))];
            self.volume.read(&mut buf, GuestOffset(place))?;
            for part in buf.chunks(GRAIN) {
                if !is_zero(part) {
                    let wrote = self.file.write_all_at(part, place);
                    wrote.map_err(|error| Error::io("cannot write the file that e2fsck reads", error))?;
                }
                place += crate::units::length(part.len());
            }
        }
        Ok(())
    }
}

impl Peer for Scan<'_> {
    fn hear(&mut self, answer: Answer, out: &mut Vec<u8>) -> Result<bool> {
        match answer {
            Answer::Read { at, len } => {
                super::edit::reply(self.volume, at, len, out)?;
                return Ok(false);
            }
            Answer::Meta { at, len } => self.copy(at, len)?,
            Answer::Finished { .. } => self.end = Some(None),
            Answer::Failed { text, .. } => self.end = Some(Some(super::edit::printed(&text))),
            Answer::Write { .. } | Answer::Put { .. } | Answer::Done => {
                return Err(Error::corrupt(
                    "the child that lists metadata gave an answer without a question",
                ));
            }
        }
        Ok(true)
    }
}

/// Runs `e2fsck` on `file`, confined: it reads that file and the system's own, and writes nothing.
fn judge(file: &File, size: u64) -> Result<Verdict> {
    let cannot = |error| Error::io("cannot start e2fsck", error);
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/local/sbin:/usr/sbin:/sbin";
    let mut command = Command::new("e2fsck");
    command.args(["-fn", "/proc/self/fd/0"]).env_clear().env("PATH", path).env("LC_ALL", "C");
    command.current_dir("/").stdin(Stdio::from(file.try_clone().map_err(cannot)?)).stderr(Stdio::piped());
    let mut rules = Some(rules(file).map_err(|error| cannot(io::Error::other(error)))?);
    let cpu = CPU_SECONDS + size / CPU_BYTES;
    // SAFETY: `confine` only makes system calls that are safe between fork and exec; it allocates nothing.
    unsafe { command.pre_exec(move || confine(cpu, rules.take())) };
    let output = command.stdout(Stdio::piped()).output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::new(
            Kind::NotFound,
            "e2fsck is needed to check the filesystem: install the package e2fsprogs",
        ),
        _ => cannot(error),
    })?;
    let said = [output.stdout, output.stderr].concat();
    let words = super::edit::printed(&String::from_utf8_lossy(&said[..said.len().min(WORDS)]));
    match output.status.code() {
        Some(0) => Ok(Verdict::Clean),
        // 1 and 2: it would have repaired; 4: it left errors; 8: it could not even begin.
        Some(1..16) => Ok(Verdict::Damaged(words)),
        _ => Err(Error::new(Kind::Io, format!("e2fsck did not end well ({}): {words}", output.status))),
    }
}

/// Runs in the child before `e2fsck` does.
fn confine(cpu: u64, rules: Option<RulesetCreated>) -> io::Result<()> {
    // SAFETY: plain system calls on numbers.
    unsafe {
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0
            || libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
        {
            return Err(io::Error::last_os_error());
        }
        // Not everybody may, and the limits below hold all the same.
        if libc::unshare(libc::CLONE_NEWNET) != 0 {
            libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET);
        }
    }
    setrlimit(Resource::RLIMIT_AS, ADDRESS_SPACE, ADDRESS_SPACE)?;
    setrlimit(Resource::RLIMIT_CPU, cpu, cpu + 10)?;
    setrlimit(Resource::RLIMIT_FSIZE, 0, 0)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    if let Some(rules) = rules {
        // That the kernel has only a part of it is no error.
        rules.restrict_self().map_err(|_| io::Error::from_raw_os_error(libc::EPERM))?;
    }
    Ok(())
}

fn rules(file: &File) -> std::result::Result<RulesetCreated, RulesetError> {
    let read = AccessFs::from_read(ABI::V5);
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V5))?
        .handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp)?
        .create()?
        .add_rule(PathBeneath::new(file.as_fd(), AccessFs::ReadFile))?;
    for folder in ["/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc", "/proc", "/nix", "/gnu"] {
        if let Ok(folder) = PathFd::new(folder) {
            rules = rules.add_rule(PathBeneath::new(folder, read))?;
        }
    }
    Ok(rules)
}
