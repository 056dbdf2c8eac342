//! What each request means, apart from the protocol: names, attributes, opening and closing.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use fuser::{Errno, FileAttr, FopenFlags};

use crate::attr::Look;
use crate::errno::guarded;
use crate::handles::{Handles, Listing, OpenFile};
use crate::inodes::{Identity, Inodes, Node, Place, ROOT};
use crate::pace::Pace;
use crate::process::process_of;
use crate::{Opener, Source, Stat};

/// How long an opener that meets `EBUSY` waits for a writer that was just closed to be released.
const CLOSING_TIMEOUT: Duration = Duration::from_millis(250);
/// How long the kernel may remember what never changes: the folders.
const FIXED_TTL: Duration = Duration::from_secs(3600);
/// Files may come, go and change at any time, so the kernel asks anew each time.
const LIVE_TTL: Duration = Duration::ZERO;
/// Longest file name, in bytes.
pub(crate) const NAME_MAX: usize = 255;

/// A mounted source with all that is open.
pub(crate) struct View<S> {
    source: S,
    folders: Vec<String>,
    inodes: Inodes,
    pub(crate) handles: Handles,
    /// How long reads take now.
    pub(crate) pace: Pace,
    look: Look,
}

/// Attributes, and how long the kernel may keep them.
pub(crate) type Shown = (FileAttr, Duration);

impl<S: Source> View<S> {
    pub(crate) fn new(source: S, folders: Vec<String>, look: Look) -> Self {
        let inodes = Inodes::new(folders.len());
        View { source, folders, inodes, handles: Handles::default(), pace: Pace::default(), look }
    }

    fn folder(&self, index: usize) -> Shown {
        (self.look.folder(Inodes::folder_ino(index)), FIXED_TTL)
    }

    /// Finds `name` in the folder `parent` and counts the lookup.
    pub(crate) fn lookup(&self, parent: u64, name: Option<&str>) -> Result<Shown, Errno> {
        let name = name.ok_or(Errno::ENOENT)?;
        match self.inodes.place(parent).ok_or(Errno::ESTALE)? {
            Place::Root => {
                let index = self.folders.iter().position(|folder| folder == name);
                Ok(self.folder(index.ok_or(Errno::ENOENT)?))
            }
            Place::Folder(index) => self.lookup_file(index, name),
            Place::File(_) => Err(Errno::ENOTDIR),
        }
    }

    fn lookup_file(&self, folder: usize, name: &str) -> Result<Shown, Errno> {
        if name.len() > NAME_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let (stat, identity) = self.find(folder, name)?;
        let ino = self.inodes.lookup(folder, name, identity);
        let stat = match self.handles.of_inode(ino) {
            Some(open) => guarded(|| open.device.stat()).unwrap_or(stat),
            None => stat,
        };
        Ok((self.look.file(ino, &stat), LIVE_TTL))
    }

    /// The disk that has this name now. A name that is gone loses its number.
    fn find(&self, folder: usize, name: &str) -> Result<(Stat, Identity), Errno> {
        let folder_name = &self.folders[folder];
        let found = guarded(|| {
            let stat = self.source.stat(folder_name, name)?;
            let given = self.source.identity(folder_name, name)?;
            Ok((stat, Identity::new(given, &stat)))
        });
        if let Err(error) = &found
            && error.code() == libc::ENOENT
        {
            self.inodes.retire(folder, name);
        }
        found
    }

    /// Fails with `ESTALE` when the name of `node` stands for another disk by now: the kernel then looks it up again.
    fn find_same(&self, node: &Node) -> Result<Stat, Errno> {
        let (stat, identity) = self.find(node.folder, &node.name)?;
        if identity == node.identity { Ok(stat) } else { Err(Errno::ESTALE) }
    }

    /// Attributes of an inode. A file that is open answers for itself, also when its name is gone.
    pub(crate) fn getattr(&self, ino: u64) -> Result<Shown, Errno> {
        match self.inodes.place(ino).ok_or(Errno::ESTALE)? {
            Place::Root => Ok((self.look.folder(ROOT), FIXED_TTL)),
            Place::Folder(index) => Ok(self.folder(index)),
            Place::File(node) => {
                let stat = match self.handles.of_inode(ino) {
                    Some(open) => guarded(|| open.device.stat())?,
                    None => self.find_same(&node)?,
                };
                Ok((self.look.file(ino, &stat), LIVE_TTL))
            }
        }
    }

    pub(crate) fn forget(&self, ino: u64, count: u64) {
        self.inodes.forget(ino, count);
    }

    /// Opens a file: its handle, and how the kernel is to cache it.
    pub(crate) fn open(&self, ino: u64, flags: i32, tid: u32, uid: u32) -> Result<(u64, FopenFlags), Errno> {
        let node = match self.inodes.place(ino).ok_or(Errno::ESTALE)? {
            Place::File(node) => node,
            Place::Root | Place::Folder(_) => return Err(Errno::EISDIR),
        };
        // Emptying a disk is never meant: `>` and cp would destroy it.
        if flags & libc::O_TRUNC != 0 {
            return Err(Errno::EPERM);
        }
        let write = flags & libc::O_ACCMODE != libc::O_RDONLY;
        if write && !self.find_same(&node)?.writable {
            return Err(Errno::EROFS);
        }
        let opener = Opener { write, pid: process_of(tid), uid };
        let label = format!("{}/{}", self.folders[node.folder], node.name);
        let file = Arc::new(self.open_device(ino, &node, label, opener)?);
        let stat = guarded(|| file.device.stat());
        // Opened by name: the disk may have been replaced since its lookup.
        let checked = stat.and_then(|stat| self.find_same(&node).map(|_| stat));
        match checked {
            Ok(stat) => Ok((self.handles.insert(file), open_flags(&stat, flags))),
            Err(error) => {
                let _ = guarded(|| {
                    drop(file);
                    Ok(())
                });
                Err(error)
            }
        }
    }

    /// Asks the source; on `EBUSY` while a closed writer is still to be released, waits for that and asks again.
    fn open_device(&self, ino: u64, node: &Node, label: String, opener: Opener) -> Result<OpenFile, Errno> {
        let deadline = Instant::now() + CLOSING_TIMEOUT;
        let folder = &self.folders[node.folder];
        loop {
            let closing = self.handles.is_closing();
            match guarded(|| self.source.open(folder, &node.name, opener)) {
                Ok(device) => return Ok(OpenFile::new(ino, label, opener.write, device)),
                Err(error)
                    if error.code() == libc::EBUSY && closing && self.handles.wait_for_closing(deadline) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Names in a folder as the program `handle` sees them.
    pub(crate) fn listing(&self, ino: u64, handle: u64, from_start: bool) -> Result<Listing, Errno> {
        let place = self.inodes.place(ino).ok_or(Errno::ESTALE)?;
        self.handles.listing(handle, from_start, || match place {
            Place::Root => {
                let numbered = self.folders.iter().enumerate();
                Ok(Arc::new(numbered.map(|(i, name)| (Inodes::folder_ino(i), name.clone())).collect()))
            }
            Place::Folder(index) => {
                let mut names = guarded(|| self.source.list(&self.folders[index]))?;
                names.retain(|name| is_file_name(name));
                let number = |name: String| (self.inodes.number_of(index, &name), name);
                Ok(Arc::new(names.into_iter().map(number).collect()))
            }
            Place::File(_) => Err(Errno::ENOTDIR),
        })
    }

    /// Makes every file that is still open durable and drops it. Returns the first failure, with the file's name.
    pub(crate) fn end(&self) -> Result<(), (String, Errno)> {
        let mut result = Ok(());
        for file in self.handles.drain() {
            if file.write
                && let Err(error) = guarded(|| file.device.close())
                && result.is_ok()
            {
                result = Err((file.label.clone(), error));
            }
            let _ = guarded(|| {
                drop(file);
                Ok(())
            });
        }
        result
    }
}

/// How the kernel caches an open file; `docs/view.md` says why.
fn open_flags(stat: &Stat, flags: i32) -> FopenFlags {
    let mut answer = FopenFlags::empty();
    if stat.immutable {
        answer |= FopenFlags::FOPEN_KEEP_CACHE;
    }
    if flags & libc::O_DIRECT != 0 {
        answer |= FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
    }
    answer
}

/// True for what can be a name in a folder.
pub(crate) fn is_file_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && name.len() <= NAME_MAX && !name.contains(['/', '\0'])
}

/// What folders show, for users of this crate that mount now.
pub(crate) fn look_of_mounter(read_only: bool) -> Look {
    Look {
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        read_only,
        mounted: SystemTime::now(),
    }
}
