//! Watches a folder: writes down every change of its names and files, dies in the midst, or fails.
#![allow(dead_code, clippy::unwrap_used, clippy::missing_panics_doc, unreachable_pub, missing_docs)]

use super::world::{Id, Meta, World};
use cowshed::storage::{Change, Entry, Watch};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// A name in a folder.
pub type Place = (Id, String);

/// One change that was made.
#[derive(Clone, Debug)]
pub enum Op {
    CreateFile(Place, Id, u64),
    MakeFolder(Place, Id),
    Link(Place, Id),
    Rename(Place, Place, Id),
    /// With what had the first name, and what had the second.
    Exchange(Place, Place, [Id; 2]),
    Remove(Place, Id),
    Write(Id, u64, Vec<u8>),
    Punch(Id, u64, u64),
    SetLen(Id, u64),
    Protect(Id),
    SyncData(Id),
    SyncFile(Id),
    SyncFolder(Id),
    SyncFilesystem,
}

impl Op {
    pub fn is_sync(&self) -> bool {
        matches!(self, Self::SyncData(_) | Self::SyncFile(_) | Self::SyncFolder(_) | Self::SyncFilesystem)
    }
}

/// One change with what the host knew of the file right after it.
#[derive(Clone, Debug)]
pub struct Event {
    pub op: Op,
    pub meta: Option<Meta>,
}

/// What a folder was, and every change since.
#[derive(Debug)]
pub struct Journal {
    pub start: World,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    ids: HashMap<u64, Id>,
    next: Id,
    events: Vec<Event>,
}

impl Journal {
    /// Begins with what is in `dir` now.
    pub fn of(dir: &Path) -> Arc<Self> {
        let (start, ids) = World::of(dir);
        let next = ids.len() as Id;
        Arc::new(Self { start, state: Mutex::new(State { ids, next, events: Vec::new() }) })
    }

    pub fn events(&self) -> Vec<Event> {
        self.state.lock().unwrap().events.clone()
    }

    /// A process whose changes are written down.
    pub fn living(self: &Arc<Self>) -> Arc<dyn Watch> {
        self.dying(usize::MAX)
    }

    /// A process that is killed after `changes` changes: nothing that it does then has any effect.
    pub fn dying(self: &Arc<Self>, changes: usize) -> Arc<dyn Watch> {
        Arc::new(Process { journal: Arc::clone(self), left: AtomicUsize::new(changes) })
    }
}

#[derive(Debug)]
struct Process {
    journal: Arc<Journal>,
    left: AtomicUsize,
}

impl Watch for Process {
    fn change(&self, change: Change<'_>, make: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        let mut state = self.journal.state.lock().unwrap();
        let left = self.left.load(Ordering::SeqCst);
        if left == 0 {
            return Err(io::Error::other("this process is dead"));
        }
        self.left.store(left - 1, Ordering::SeqCst);
        let before = state.named(&change);
        make()?;
        let event = state.event(change, before);
        state.events.push(event);
        Ok(())
    }
}

impl State {
    fn id(&mut self, inode: u64) -> Id {
        let next = self.next;
        let id = *self.ids.entry(inode).or_insert(next);
        self.next += u64::from(id == next);
        id
    }

    /// Numbers may be used again; what was just made is new.
    fn fresh(&mut self, inode: u64) -> Id {
        self.ids.remove(&inode);
        self.id(inode)
    }

    fn place(&mut self, entry: &Entry<'_>) -> Place {
        let inode = File::from(entry.folder.as_fd().try_clone_to_owned().unwrap()).metadata().unwrap().ino();
        (self.id(inode), entry.name.to_str().unwrap().to_owned())
    }

    fn opened(&mut self, file: &File) -> Id {
        self.id(file.metadata().unwrap().ino())
    }

    /// What has the name that is about to go.
    fn named(&mut self, change: &Change<'_>) -> Option<Id> {
        match change {
            Change::Rename(entry, _)
            | Change::Exchange(entry, _)
            | Change::Unlink(entry)
            | Change::RemoveFolder(entry) => {
                entry.folder.stat(entry.name).ok().map(|stat| self.id(stat.st_ino))
            }
            _ => None,
        }
    }

    fn event(&mut self, change: Change<'_>, before: Option<Id>) -> Event {
        let inode = |entry: &Entry<'_>| entry.folder.stat(entry.name).unwrap().st_ino;
        let mut meta = None;
        let op = match change {
            Change::CreateFile(entry) => {
                let opened = entry.folder.file(entry.name, cowshed::storage::FileAccess::Read).unwrap();
                meta = Some(Meta::of(opened.file()));
                Op::CreateFile(self.place(&entry), self.fresh(inode(&entry)), inode(&entry))
            }
            Change::MakeFolder(entry) => Op::MakeFolder(self.place(&entry), self.fresh(inode(&entry))),
            Change::Link(entry) => Op::Link(self.place(&entry), self.id(inode(&entry))),
            Change::Rename(from, to) => Op::Rename(self.place(&from), self.place(&to), before.unwrap()),
            Change::Exchange(from, to) => {
                let ids = [before.unwrap(), self.id(inode(&from))];
                Op::Exchange(self.place(&from), self.place(&to), ids)
            }
            Change::Unlink(entry) | Change::RemoveFolder(entry) => {
                Op::Remove(self.place(&entry), before.unwrap())
            }
            Change::Write(file, at, data) => {
                meta = Some(Meta::of(file));
                Op::Write(self.opened(file), at.0, data.to_vec())
            }
            Change::Punch(file, at, len) => {
                meta = Some(Meta::of(file));
                Op::Punch(self.opened(file), at.0, len)
            }
            Change::SetLen(file, len) => {
                meta = Some(Meta::of(file));
                Op::SetLen(self.opened(file), len)
            }
            Change::Protect(file) => {
                meta = Some(Meta::of(file));
                Op::Protect(self.opened(file))
            }
            Change::SyncData(file) => Op::SyncData(self.opened(file)),
            Change::SyncFile(file) => Op::SyncFile(self.opened(file)),
            Change::SyncFolder(folder) => {
                let inode =
                    File::from(folder.as_fd().try_clone_to_owned().unwrap()).metadata().unwrap().ino();
                Op::SyncFolder(self.id(inode))
            }
            Change::SyncFilesystem(_) => Op::SyncFilesystem,
        };
        Event { op, meta }
    }
}

/// A host that fails.
#[derive(Debug)]
pub struct Faulty {
    /// Changes before the first that fails.
    pub after: usize,
    /// Whether all later ones fail too.
    pub lasting: bool,
    pub errno: i32,
    done: Mutex<Done>,
}

#[derive(Debug, Default)]
struct Done {
    changes: usize,
    failed: Vec<String>,
    failed_sync: bool,
}

impl Faulty {
    pub fn new(after: usize, errno: i32, lasting: bool) -> Arc<Self> {
        Arc::new(Self { after, lasting, errno, done: Mutex::default() })
    }

    /// The changes that were refused, in words.
    pub fn failed(&self) -> Vec<String> {
        self.done.lock().unwrap().failed.clone()
    }

    pub fn failed_sync(&self) -> bool {
        self.done.lock().unwrap().failed_sync
    }
}

impl Watch for Faulty {
    fn change(&self, change: Change<'_>, make: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        let mut done = self.done.lock().unwrap();
        let number = done.changes;
        done.changes += 1;
        if number < self.after || number > self.after && !self.lasting {
            return make();
        }
        done.failed_sync |= matches!(
            change,
            Change::SyncData(_) | Change::SyncFile(_) | Change::SyncFolder(_) | Change::SyncFilesystem(_)
        );
        done.failed.push(words(&change));
        Err(io::Error::from_raw_os_error(self.errno))
    }
}

/// A change in a few words.
pub fn words(change: &Change<'_>) -> String {
    let place = |entry: &Entry<'_>| entry.folder.path().join(entry.name).display().to_string();
    match change {
        Change::CreateFile(entry) => format!("create {}", place(entry)),
        Change::MakeFolder(entry) => format!("mkdir {}", place(entry)),
        Change::Link(entry) => format!("link {}", place(entry)),
        Change::Rename(from, to) => format!("rename {} to {}", place(from), place(to)),
        Change::Exchange(from, to) => format!("exchange {} with {}", place(from), place(to)),
        Change::Unlink(entry) => format!("unlink {}", place(entry)),
        Change::RemoveFolder(entry) => format!("rmdir {}", place(entry)),
        Change::Write(_, at, data) => format!("write {} at {}", data.len(), at.0),
        Change::Punch(_, at, len) => format!("punch {len} at {}", at.0),
        Change::SetLen(_, len) => format!("set length {len}"),
        Change::Protect(_) => "protect".to_owned(),
        Change::SyncData(_) => "fdatasync".to_owned(),
        Change::SyncFile(_) => "fsync".to_owned(),
        Change::SyncFolder(folder) => format!("fsync folder {}", folder.path().display()),
        Change::SyncFilesystem(_) => "syncfs".to_owned(),
    }
}
