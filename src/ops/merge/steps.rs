//! From what becomes of each file to the edits of the new base's filesystem.

use super::decide::Merge;
use super::fate::{Facts, Fate, Live, Source};
use super::tree::File;
use super::{Side, Version};
use crate::guestfs::Time;
use crate::guestfs::edit::{Attributes, Edit, Kind, Node};
use crate::guestfs::ext4::FileKind;
use std::collections::BTreeSet;

/// One step of the work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// An edit.
    Edit(Edit),
    /// The content becomes that of another file.
    Copy {
        /// The file.
        node: Node,
        /// Where its bytes are.
        from: (Version, u32),
    },
    /// The content becomes these bytes.
    Put {
        /// The file.
        node: Node,
        /// They.
        bytes: Vec<u8>,
    },
}

/// The steps, in an order in which they can be done: files are made, names go and come, contents follow, and what an
/// inode says comes last.
#[derive(Debug, Default)]
pub(super) struct Steps {
    made: Vec<Step>,
    unlinked: Vec<Step>,
    linked: Vec<Step>,
    filled: Vec<Step>,
    told: Vec<Step>,
    /// Paths that the steps change, as they are in the result; of what goes, as they were.
    pub(super) kept: BTreeSet<Vec<u8>>,
    next: u32,
}

impl Steps {
    pub(super) fn of(merge: &mut Merge<'_>) -> Self {
        let mut steps =
            Self { next: u32::try_from(merge.fates.len()).unwrap_or(u32::MAX), ..Self::default() };
        for (at, fate) in merge.fates.iter().enumerate() {
            let before = steps.count();
            match fate {
                Fate::Kept => {}
                Fate::Dead(_) => steps.remove(merge, at),
                Fate::Live(live) => steps.keep(merge, at, live),
            }
            if steps.count() > before {
                steps.kept.insert(merge.result_path(at));
            }
        }
        for at in std::mem::take(&mut merge.siblings) {
            steps.beside(merge, at);
        }
        steps
    }

    fn count(&self) -> usize {
        self.made.len() + self.unlinked.len() + self.linked.len() + self.filled.len() + self.told.len()
    }

    pub(super) fn into_list(self) -> Vec<Step> {
        let mut list = self.made;
        for mut part in [self.unlinked, self.linked, self.filled, self.told] {
            list.append(&mut part);
        }
        list
    }

    /// Takes all names from a file of the base.
    fn remove(&mut self, merge: &Merge<'_>, at: usize) {
        let Some(ino) = merge.objects.all[at].base else { return };
        for (folder, name) in &merge.file(Version::Base, ino).names {
            self.unlinked.push(Step::Edit(Edit::Unlink { folder: Node::Old(*folder), name: name.clone() }));
        }
    }

    fn keep(&mut self, merge: &Merge<'_>, at: usize, live: &Live) {
        let object = merge.objects.all[at];
        let node = node(merge, at);
        match object.base {
            Some(ino) => {
                let clone = object.clone.map(|ino| merge.file(Version::Clone, ino));
                self.change(merge, node, (merge.file(Version::Base, ino), clone), live);
            }
            None => {
                let Some(ino) = object.clone else { return };
                self.make(at, merge.file(Version::Clone, ino), live);
            }
        }
        for name in &live.names {
            if merge.holder(Version::Base, name) != Some(at) {
                let folder = self::node(merge, name.0);
                self.linked.push(Step::Edit(Edit::Link { folder, name: name.1.clone(), to: node }));
            }
        }
        self.fill(merge, at, node, live);
    }

    /// A file of the base: what it says, and the names that it loses.
    fn change(&mut self, merge: &Merge<'_>, node: Node, (base, clone): (&File, Option<&File>), live: &Live) {
        for (folder, name) in &base.names {
            let above = merge.objects.object(Version::Base, *folder);
            if live.names.binary_search(&(above, name.clone())).is_err() {
                self.unlinked
                    .push(Step::Edit(Edit::Unlink { folder: Node::Old(*folder), name: name.clone() }));
            }
        }
        let was = Facts::of(base);
        if was.target != live.facts.target {
            self.filled.push(Step::Edit(Edit::Target { node, target: live.facts.target.clone() }));
        }
        self.xattrs(node, &was, &live.facts);
        if was != live.facts || live.source != Source::Of(Side::Base) {
            // A change shows: the next merge may go by the times of inodes.
            let changed = clone.map_or(base.changed, |clone| clone.changed).max(later(base.changed));
            let attributes = attributes(base, &live.facts);
            let ctime = attributes.ctime.max(changed);
            self.told
                .push(Step::Edit(Edit::Attributes { node, attributes: Attributes { ctime, ..attributes } }));
        }
    }

    fn xattrs(&mut self, node: Node, was: &Facts, is: &Facts) {
        for name in was.xattrs.keys().filter(|name| !is.xattrs.contains_key(*name)) {
            self.filled.push(Step::Edit(Edit::RemoveXattr { node, name: name.clone() }));
        }
        for (name, value) in &is.xattrs {
            if was.xattrs.get(name) != Some(value) {
                let (name, value) = (name.clone(), value.clone());
                self.filled.push(Step::Edit(Edit::SetXattr { node, name, value }));
            }
        }
    }

    /// A file that the base does not have.
    fn make(&mut self, at: usize, file: &File, live: &Live) {
        let id = id(at);
        self.made.push(Step::Edit(Edit::Make {
            id,
            kind: kind(file, &live.facts),
            attributes: attributes(file, &live.facts),
        }));
        let none = Facts { xattrs: Default::default(), ..live.facts.clone() };
        self.xattrs(Node::New(id), &none, &live.facts);
    }

    fn fill(&mut self, merge: &Merge<'_>, at: usize, node: Node, live: &Live) {
        let object = merge.objects.all[at];
        let from = |side: Side| object.of_version(side.into()).map(|ino| (Version::from(side), ino));
        let is_file = |(version, ino): (Version, u32)| merge.file(version, ino).kind == FileKind::Regular;
        match &live.source {
            Source::Bytes(bytes) => self.filled.push(Step::Put { node, bytes: bytes.clone() }),
            Source::Of(Side::Base) => {}
            Source::Of(Side::Clone) => {
                if let Some(from) = from(Side::Clone).filter(|from| is_file(*from)) {
                    self.filled.push(Step::Copy { node, from });
                }
            }
        }
    }

    /// The base's version of a file or link beside the clone's.
    fn beside(&mut self, merge: &mut Merge<'_>, at: usize) {
        let (Some(ino), Some(live)) = (merge.objects.all[at].base, merge.fates[at].live()) else { return };
        let Some(name) = live.names.first().cloned() else { return };
        let file = merge.file(Version::Base, ino);
        let id = self.next;
        self.next += 1;
        let facts = Facts::of(file);
        let node = Node::New(id);
        self.made.push(Step::Edit(Edit::Make {
            id,
            kind: kind(file, &facts),
            attributes: attributes(file, &facts),
        }));
        let none = Facts { xattrs: Default::default(), ..facts.clone() };
        self.xattrs(node, &none, &facts);
        let folder = self::node(merge, name.0);
        let name = merge.name_beside(&name).1;
        self.linked.push(Step::Edit(Edit::Link { folder, name, to: node }));
        if file.kind == FileKind::Regular {
            self.filled.push(Step::Copy { node, from: (Version::Base, ino) });
        }
    }
}

fn id(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// The node of an object in the filesystem that is edited.
fn node(merge: &Merge<'_>, at: usize) -> Node {
    merge.objects.all[at].base.map_or(Node::New(id(at)), Node::Old)
}

/// The next time that can be told apart.
pub(super) fn later(time: Time) -> Time {
    match time.nanoseconds {
        999_999_999.. => Time { seconds: time.seconds.saturating_add(1), nanoseconds: 0 },
        nanoseconds => Time { nanoseconds: nanoseconds + 1, ..time },
    }
}

fn kind(file: &File, facts: &Facts) -> Kind {
    let device = facts.device.map_or((0, 0), |device| (device.major, device.minor));
    match file.kind {
        FileKind::Regular => Kind::File,
        FileKind::Directory => Kind::Folder,
        FileKind::Symlink => Kind::Symlink(facts.target.clone()),
        FileKind::CharDevice => Kind::Char { major: device.0, minor: device.1 },
        FileKind::BlockDevice => Kind::Block { major: device.0, minor: device.1 },
        FileKind::Fifo => Kind::Fifo,
        FileKind::Socket => Kind::Socket,
    }
}

pub(super) fn attributes(file: &File, facts: &Facts) -> Attributes {
    Attributes {
        mode: facts.mode,
        uid: facts.uid,
        gid: facts.gid,
        atime: file.accessed,
        ctime: file.changed.max(facts.modified),
        mtime: facts.modified,
        crtime: file.created.unwrap_or_default(),
        flags: facts.flags,
        project: (facts.project != 0 || file.project != 0).then_some(facts.project),
    }
}
