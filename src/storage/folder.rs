//! Folders of the host: names, and what makes them durable.
//!
//! Everything is reached through an open folder, one component at a time, and never through a symbolic link: a link
//! planted inside a store leads nowhere. Only regular files are opened, so that a fifo or a device cannot hang us.

use super::watch::{self, Change, Entry, Watch, Watcher};
use super::{HostFile, Storage};
use crate::units::{HostOffset, index, length};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{
    AT_FDCWD, AtFlags, OFlag, OpenHow, RenameFlags, ResolveFlag, openat, openat2, renameat, renameat2,
};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, linkat, syncfs, unlinkat};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// How a file of a folder is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileAccess {
    /// For reading.
    Read,
    /// For reading and writing.
    Write,
    /// For adding to its end; the file is made when there is none.
    Append,
}

/// Only the owner gets in: a folder above may be opened for others, a disk is nobody else's to read.
const OWN_FILE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);
const OWN_FOLDER: u32 = 0o700;

/// An open folder. Who watches it also watches what is opened below it.
#[derive(Debug)]
pub struct Folder {
    fd: OwnedFd,
    path: PathBuf,
    watcher: Watcher,
}

const NO_LINKS: ResolveFlag = ResolveFlag::RESOLVE_BENEATH
    .union(ResolveFlag::RESOLVE_NO_SYMLINKS)
    .union(ResolveFlag::RESOLVE_NO_MAGICLINKS);

impl Folder {
    /// Opens the folder at `path`, which a user named and which may be a link.
    ///
    /// # Errors
    /// The host's.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::open_watched(path, None)
    }

    /// The same with somebody who watches all changes.
    ///
    /// # Errors
    /// As [`Folder::open`].
    pub fn open_watched(path: &Path, watcher: Option<Arc<dyn Watch>>) -> io::Result<Self> {
        let path = std::fs::canonicalize(path)?;
        let file = File::options().read(true).custom_flags(libc::O_DIRECTORY).open(&path)?;
        Ok(Self { fd: file.into(), path, watcher })
    }

    /// Opens the folder at `path`, which a user named, watched as this one is.
    ///
    /// # Errors
    /// As [`Folder::open`].
    pub fn elsewhere(&self, path: &Path) -> io::Result<Self> {
        Self::open_watched(path, self.watcher.clone())
    }

    fn change(&self, change: Change<'_>, make: impl FnMut() -> io::Result<()>) -> io::Result<()> {
        watch::change(&self.watcher, change, make)
    }

    fn entry<'a>(&'a self, name: &'a Path) -> Entry<'a> {
        Entry { folder: self, name }
    }

    /// Where it was when it was opened, absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Another handle of the same folder.
    ///
    /// # Errors
    /// The host's.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()?, path: self.path.clone(), watcher: self.watcher.clone() })
    }

    /// Opens a folder below this one.
    ///
    /// # Errors
    /// The host's; `ELOOP` where a link is in the way.
    pub fn folder(&self, below: impl AsRef<Path>) -> io::Result<Self> {
        let below = below.as_ref();
        let fd = self.open_beneath(below, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        Ok(Self { fd, path: self.path.join(below), watcher: self.watcher.clone() })
    }

    /// Opens a regular file below this folder.
    ///
    /// # Errors
    /// The host's; `InvalidInput` for anything that is not a regular file.
    pub fn file(&self, below: impl AsRef<Path>, access: FileAccess) -> io::Result<HostFile> {
        let flags = match access {
            FileAccess::Read => OFlag::O_RDONLY,
            FileAccess::Write => OFlag::O_RDWR,
            FileAccess::Append => OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_APPEND,
        };
        let file = File::from(self.open_beneath(below.as_ref(), flags | OFlag::O_NONBLOCK)?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(HostFile::watched(file, self.watcher.clone()))
    }

    /// Makes the empty file `name`, for reading and writing.
    ///
    /// # Errors
    /// The host's; `AlreadyExists`.
    pub fn create(&self, name: impl AsRef<Path>) -> io::Result<HostFile> {
        let name = name.as_ref();
        let mut made = None;
        self.change(Change::CreateFile(self.entry(name)), || {
            let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NONBLOCK;
            made = Some(self.open_beneath(name, flags)?);
            Ok(())
        })?;
        let file = made.ok_or(Errno::EIO)?;
        Ok(HostFile::watched(file.into(), self.watcher.clone()))
    }

    /// Makes a file that has no name yet, for reading and writing: when we die, it is gone.
    ///
    /// # Errors
    /// The host's; not every filesystem has such files.
    pub fn create_nameless(&self) -> io::Result<HostFile> {
        let flags = OFlag::O_RDWR | OFlag::O_TMPFILE | OFlag::O_CLOEXEC;
        let file = openat(&self.fd, ".", flags, Mode::from_bits_truncate(0o666))?;
        Ok(HostFile::watched(file.into(), self.watcher.clone()))
    }

    fn open_beneath(&self, below: &Path, flags: OFlag) -> io::Result<OwnedFd> {
        let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let mode = if flags.contains(OFlag::O_CREAT) { OWN_FILE } else { Mode::empty() };
        let how = OpenHow::new().flags(flags).mode(mode).resolve(NO_LINKS);
        match openat2(&self.fd, below, how) {
            // Kernels before 5.6 lack it, and some sandboxes forbid what they do not know.
            Err(Errno::ENOSYS | Errno::EPERM) => self.open_stepwise(below, flags, mode),
            other => Ok(other?),
        }
    }

    fn open_stepwise(&self, below: &Path, flags: OFlag, mode: Mode) -> io::Result<OwnedFd> {
        let step = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut at = self.fd.try_clone()?;
        let mut components = below.components().peekable();
        while let Some(component) = components.next() {
            let Component::Normal(name) = component else { return Err(Errno::EXDEV.into()) };
            if components.peek().is_none() {
                return Ok(openat(&at, name, flags, mode)?);
            }
            at = openat(&at, name, step, Mode::empty())?;
        }
        Err(Errno::ENOENT.into())
    }

    /// All of a small file.
    ///
    /// # Errors
    /// The host's; `InvalidData` for a file of more than `limit` bytes.
    pub fn read_small(&self, below: impl AsRef<Path>, limit: u64) -> io::Result<Vec<u8>> {
        // Room for nearly all of them: one read for the bytes, and one that finds the end.
        const USUAL: u64 = 4096;
        let mut bytes = Vec::with_capacity(index(limit.min(USUAL)));
        self.file(below, FileAccess::Read)?.file().take(limit + 1).read_to_end(&mut bytes)?;
        if length(bytes.len()) > limit {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("it has more than {limit} bytes"),
            ));
        }
        Ok(bytes)
    }

    /// Makes the file `name` with `bytes` in it; its content is durable afterwards, its name only after a
    /// [`Folder::sync`].
    ///
    /// # Errors
    /// The host's; `AlreadyExists`.
    pub fn create_small(&self, name: &str, bytes: &[u8], durable: bool) -> io::Result<()> {
        let file = self.create(name)?;
        file.write_at(bytes, HostOffset(0))?;
        if durable {
            file.sync_all()?;
        }
        Ok(())
    }

    /// Puts `bytes` in the place of the file `name`, whether there is one or not: afterwards, and after a cut at any
    /// moment, it holds all of the old bytes or all of the new ones; durable when this returns.
    ///
    /// # Errors
    /// The host's; the old file is then still there.
    pub fn replace_small(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let staged = format!(".{name}.new");
        self.unlink_if_there(&staged)?;
        let put = self.create_small(&staged, bytes, true).and_then(|()| self.move_over(&staged, self, name));
        if put.is_err() {
            // The first error is the one to tell; what stays is replaced by the next try.
            let _ = self.unlink_if_there(&staged);
        }
        put?;
        self.sync()
    }

    /// Makes a folder that only its owner can enter.
    ///
    /// # Errors
    /// The host's; `AlreadyExists`.
    pub fn make_folder(&self, name: impl AsRef<Path>) -> io::Result<()> {
        self.make_folder_for(name, OWN_FOLDER)
    }

    /// Makes a folder with another mode, less the umask.
    ///
    /// # Errors
    /// The host's; `AlreadyExists`.
    pub fn make_folder_for(&self, name: impl AsRef<Path>, mode: u32) -> io::Result<()> {
        let name = name.as_ref();
        let mode = Mode::from_bits_truncate(mode);
        self.change(Change::MakeFolder(self.entry(name)), || Ok(mkdirat(&self.fd, name, mode)?))
    }

    /// Names in this folder, sorted, without `.` and `..`. Names that are not UTF-8 are nobody's, and left out.
    ///
    /// # Errors
    /// The host's.
    pub fn names(&self) -> io::Result<Vec<String>> {
        // A descriptor of its own: the place of a listing belongs to the open file description.
        let own =
            openat(&self.fd, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        let mut names = Vec::new();
        for entry in Dir::from_fd(own)?.iter() {
            if let Ok(name) = entry?.file_name().to_str()
                && !matches!(name, "." | "..")
            {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// What the host knows about `name`, which may be a link.
    ///
    /// # Errors
    /// The host's.
    pub fn stat(&self, name: impl AsRef<Path>) -> io::Result<FileStat> {
        Ok(fstatat(&self.fd, name.as_ref(), AtFlags::AT_SYMLINK_NOFOLLOW)?)
    }

    /// Whether there is something of that name.
    ///
    /// # Errors
    /// The host's.
    pub fn has(&self, name: impl AsRef<Path>) -> io::Result<bool> {
        match self.stat(name) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Moves `name` to `to`/`new`, which must not exist; durable after a [`Folder::sync`] of `to`.
    ///
    /// # Errors
    /// The host's; `AlreadyExists`.
    pub fn move_new(&self, name: impl AsRef<Path>, to: &Folder, new: impl AsRef<Path>) -> io::Result<()> {
        let (name, new) = (name.as_ref(), new.as_ref());
        self.change(Change::Rename(self.entry(name), to.entry(new)), || {
            match renameat2(&self.fd, name, &to.fd, new, RenameFlags::RENAME_NOREPLACE) {
                // Not every filesystem has it. The callers hold the store's lock, so nobody else makes `new` meanwhile.
                Err(Errno::EINVAL | Errno::ENOSYS) if !to.has(new)? => {
                    Ok(renameat(&self.fd, name, &to.fd, new)?)
                }
                Err(Errno::EINVAL | Errno::ENOSYS) => Err(Errno::EEXIST.into()),
                other => Ok(other?),
            }
        })
    }

    /// Moves the file `name` over `to`/`new`; durable after a [`Folder::sync`] of `to`.
    ///
    /// # Errors
    /// The host's.
    pub fn move_over(&self, name: impl AsRef<Path>, to: &Folder, new: impl AsRef<Path>) -> io::Result<()> {
        let (name, new) = (name.as_ref(), new.as_ref());
        let change = Change::Rename(self.entry(name), to.entry(new));
        self.change(change, || Ok(renameat(&self.fd, name, &to.fd, new)?))
    }

    /// Exchanges `name` with `to`/`other`, which both exist: afterwards, and after a cut at any moment, both are there,
    /// each as before or each as after; durable after a [`Folder::sync`] of `to`.
    ///
    /// # Errors
    /// The host's; `Unsupported` where the filesystem cannot do it.
    pub fn exchange(&self, name: impl AsRef<Path>, to: &Folder, other: impl AsRef<Path>) -> io::Result<()> {
        let (name, other) = (name.as_ref(), other.as_ref());
        let change = Change::Exchange(self.entry(name), to.entry(other));
        let exchange = || Ok(renameat2(&self.fd, name, &to.fd, other, RenameFlags::RENAME_EXCHANGE)?);
        self.change(change, exchange).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL | libc::ENOSYS) => {
                io::Error::new(io::ErrorKind::Unsupported, "this filesystem cannot exchange two names")
            }
            _ => error,
        })
    }

    /// Gives the file `name` the second name `new`, which must not exist.
    ///
    /// # Errors
    /// The host's; `AlreadyExists`.
    pub fn link(&self, name: impl AsRef<Path>, new: impl AsRef<Path>) -> io::Result<()> {
        let (name, new) = (name.as_ref(), new.as_ref());
        let change = Change::Link(self.entry(new));
        self.change(change, || Ok(linkat(&self.fd, name, &self.fd, new, AtFlags::empty())?))
    }

    /// Gives an open file, which may have no name, the name `new`, which must not exist.
    ///
    /// # Errors
    /// The host's; `AlreadyExists`.
    pub fn link_file(&self, file: &HostFile, new: impl AsRef<Path>) -> io::Result<()> {
        let new = new.as_ref();
        let own = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
        self.change(Change::Link(self.entry(new)), || {
            Ok(linkat(AT_FDCWD, own.as_str(), &self.fd, new, AtFlags::AT_SYMLINK_FOLLOW)?)
        })
    }

    /// Removes a file, sealed or not; that it is missing is no error.
    ///
    /// # Errors
    /// The host's.
    pub fn unlink_if_there(&self, name: impl AsRef<Path>) -> io::Result<()> {
        let name = name.as_ref();
        let unlink = || {
            self.change(Change::Unlink(self.entry(name)), || {
                Ok(unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir)?)
            })
        };
        match unlink() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                self.file(name, FileAccess::Read)?.set_immutable(false)?;
                unlink()
            }
            other => other,
        }
    }

    /// Removes an empty folder.
    ///
    /// # Errors
    /// The host's.
    pub fn remove_folder(&self, name: impl AsRef<Path>) -> io::Result<()> {
        let name = name.as_ref();
        let change = Change::RemoveFolder(self.entry(name));
        self.change(change, || Ok(unlinkat(&self.fd, name, UnlinkatFlags::RemoveDir)?))
    }

    /// Removes `name` and all that is in it; sealed files too.
    ///
    /// # Errors
    /// The host's; part of it may then be gone.
    pub fn remove_tree(&self, name: &str) -> io::Result<()> {
        self.remove_tree_to(name, 16)
    }

    fn remove_tree_to(&self, name: &str, depth: u32) -> io::Result<()> {
        let stat = match self.stat(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        if !is_folder(&stat) {
            return self.unlink_if_there(name);
        }
        let depth = depth.checked_sub(1).ok_or(Errno::ELOOP)?;
        let folder = self.folder(name)?;
        for entry in folder.names()? {
            folder.remove_tree_to(&entry, depth)?;
        }
        self.remove_folder(name)
    }

    /// Makes the names in this folder durable.
    ///
    /// # Errors
    /// The host's.
    pub fn sync(&self) -> io::Result<()> {
        self.change(Change::SyncFolder(self), || Ok(nix::unistd::fsync(&self.fd)?))
    }

    /// Makes everything on this folder's filesystem durable: cheaper than many single syncs.
    ///
    /// # Errors
    /// The host's.
    pub fn sync_filesystem(&self) -> io::Result<()> {
        self.change(Change::SyncFilesystem(self), || Ok(syncfs(&self.fd)?))
    }
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether `stat` is a folder's.
#[must_use]
pub fn is_folder(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR
}

/// Whether `stat` is a regular file's.
#[must_use]
pub fn is_file(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG
}
