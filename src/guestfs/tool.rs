//! The programs of e2fsprogs on one file, confined: they see that file and the system's own, and nothing else.

use crate::confined::{self, Limits};
use crate::error::{Error, Kind, Result};
use crate::units::{GIB, MIB, index};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetError,
};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

const ADDRESS_SPACE: u64 = 16 * GIB;
/// Seconds of processor time: some, and one for each of these bytes of the filesystem's place.
const CPU_SECONDS: u64 = 300;
const CPU_BYTES: u64 = 64 * MIB;
/// More of what a program says is thrown away.
const WORDS: u64 = 4000;
/// The file or folder as the program finds it.
const OWN: &str = "/proc/self/fd/0";
/// A rule of Landlock's on a path.
const LANDLOCK_RULE_PATH_BENEATH: libc::c_int = 1;

/// One run of a program on a filesystem in a file.
#[derive(Debug)]
pub(super) struct Tool<'a> {
    pub(super) program: &'static str,
    /// What comes before the file's name.
    pub(super) arguments: &'a [&'a str],
    /// The file, or a folder with it.
    pub(super) file: &'a File,
    /// The file's path below that folder.
    pub(super) below: Option<&'static str>,
    /// Bytes of the file.
    pub(super) size: u64,
    /// Whether the program may write to the file.
    pub(super) writes: bool,
}

/// How a run ended by itself.
#[derive(Debug)]
pub(super) struct Ended {
    /// The exit code, 0 to 15.
    pub(super) code: i32,
    /// All that the program said, cut, as it may be shown.
    pub(super) words: String,
}

impl Tool<'_> {
    /// Runs it until it ends, or until `stop` says so; `after` are arguments behind the file's name.
    ///
    /// # Errors
    /// `NotFound` without the program; `Interrupted`; `Io` when it did not end by itself.
    pub(super) fn run_with(&self, after: &[&str], stop: &dyn Fn() -> bool) -> Result<Ended> {
        let program = self.program;
        let cannot = |error| Error::io(format!("cannot run {program}"), error);
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/local/sbin:/usr/sbin:/sbin";
        let mut command = Command::new(program);
        let name = self.below.map_or_else(|| OWN.to_owned(), |below| format!("{OWN}/{below}"));
        command.args(self.arguments).arg(name).args(after);
        command.env_clear().env("PATH", path).env("LC_ALL", "C").current_dir("/");
        // Ctrl-C is for us alone.
        command.stdin(Stdio::from(self.file.try_clone().map_err(cannot)?)).process_group(0);
        let rules = self.rules().map_err(cannot)?;
        let limits = Limits {
            memory: ADDRESS_SPACE,
            cpu: CPU_SECONDS + self.size / CPU_BYTES,
            file: if self.writes { self.size } else { 0 },
            words: WORDS,
        };
        let ended =
            confined::run(command, limits, None, rules, stop).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => Error::new(
                    Kind::NotFound,
                    format!("{program} is needed for the filesystem: install the package e2fsprogs"),
                ),
                _ => cannot(error),
            })?;
        let Some(ended) = ended else {
            return Err(Error::new(Kind::Interrupted, "stopped; nothing was changed").at(program));
        };
        let mut said = [ended.stdout, ended.stderr].concat();
        said.truncate(index(WORDS));
        let words = super::edit::printed(&String::from_utf8_lossy(&said));
        match ended.status.code() {
            Some(code @ 0..16) => Ok(Ended { code, words }),
            _ => {
                let message = format!("{program} did not end well ({}): {words}", ended.status);
                Err(Error::new(Kind::Io, message))
            }
        }
    }

    /// What the program reaches.
    fn rules(&self) -> io::Result<RulesetCreated> {
        let own = match self.writes {
            true => AccessFs::ReadDir | AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate,
            false => AccessFs::ReadFile.into(),
        };
        let rules = of_system().map_err(io::Error::other)?;
        if self.below.is_some() {
            allow_own(&rules, self.file, own)?;
            return Ok(rules);
        }
        rules.add_rule(PathBeneath::new(self.file.as_fd(), own)).map_err(io::Error::other)
    }

    /// As [`Tool::run_with`], with nothing behind the file's name.
    ///
    /// # Errors
    /// As there.
    pub(super) fn run(&self, stop: &dyn Fn() -> bool) -> Result<Ended> {
        self.run_with(&[], stop)
    }
}

/// The files of the system, for reading, and no network.
fn of_system() -> std::result::Result<RulesetCreated, RulesetError> {
    let read = AccessFs::from_read(ABI::V5);
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V5))?
        .handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp)?
        .create()?;
    for folder in ["/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc", "/proc", "/nix", "/gnu"] {
        if let Ok(folder) = PathFd::new(folder) {
            rules = rules.add_rule(PathBeneath::new(folder, read))?;
        }
    }
    Ok(rules)
}

/// A rule as the kernel takes it: `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct Beneath {
    allowed: u64,
    parent: i32,
}

/// Lets the program reach what is below `folder`, which this process serves itself.
///
/// Not by the library: that asks for the folder's facts, and a process that is killed while it waits for its own answer
/// waits for ever. The kernel's own call asks nobody.
fn allow_own(rules: &RulesetCreated, folder: &File, access: BitFlags<AccessFs>) -> io::Result<()> {
    let rules: Option<OwnedFd> = rules.try_clone()?.into();
    // Without Landlock there is nothing to be allowed.
    let Some(rules) = rules else { return Ok(()) };
    let add = |access: BitFlags<AccessFs>| {
        let rule = Beneath { allowed: access.bits(), parent: folder.as_raw_fd() };
        // SAFETY: both descriptors are open, and the rule is one of the kind that is said.
        let code = unsafe {
            libc::syscall(
                libc::SYS_landlock_add_rule,
                rules.as_raw_fd(),
                LANDLOCK_RULE_PATH_BENEATH,
                &raw const rule,
                0,
            )
        };
        if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    match add(access) {
        // A kernel that does not know of cutting files keeps nobody from it.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => add(access & !AccessFs::Truncate),
        done => done,
    }
}
