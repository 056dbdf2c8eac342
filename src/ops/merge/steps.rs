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
    /// Paths of the clone that are in the result by these steps.
    pub(super) kept: BTreeSet<Vec<u8>>,
    next: u32,
}

impl Steps {
    pub(super) fn of(merge: &Merge<'_>, label: &str) -> Self {
        let mut steps =
            Self { next: u32::try_from(merge.fates.len()).unwrap_or(u32::MAX), ..Self::default() };
        for (at, fate) in merge.fates.iter().enumerate() {
            let before = steps.count();
            match fate {
                Fate::Dead(_) => steps.remove(merge, at),
                Fate::Live(live) => steps.keep(merge, at, live),
            }
            if steps.count() > before {
                steps.kept.insert(merge.path(at));
            }
        }
        for at in &merge.siblings {
            steps.beside(merge, *at, label);
        }
        steps
    }

    fn count(&self) -> usize {
        self.made.len() + self.unlinked.len() + self.linked.len() + self.filled.len() + self.told.len()
    }

    pub(super) fn into_list(self) -> Vec<Step> {
        [self.made, self.unlinked, self.linked, self.filled, self.told].concat()
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
            Some(ino) => self.change(merge, node, merge.file(Version::Base, ino), live),
            None => {
                let Some(ino) = object.clone else { return };
                self.make(at, merge.file(Version::Clone, ino), live);
            }
        }
        for (folder, name) in &live.names {
            let known = object.base.is_some_and(|ino| {
                let names = &merge.file(Version::Base, ino).names;
                names.iter().any(|(above, known)| {
                    merge.objects.object(Version::Base, *above) == *folder && known == name
                })
            });
            if !known {
                let folder = self::node(merge, *folder);
                self.linked.push(Step::Edit(Edit::Link { folder, name: name.clone(), to: node }));
            }
        }
        self.fill(merge, at, node, live);
    }

    /// A file of the base: what it says, and the names that it loses.
    fn change(&mut self, merge: &Merge<'_>, node: Node, base: &File, live: &Live) {
        for (folder, name) in &base.names {
            let above = merge.objects.object(Version::Base, *folder);
            if !live.names.iter().any(|(known, n)| *known == above && n == name) {
                self.unlinked
                    .push(Step::Edit(Edit::Unlink { folder: Node::Old(*folder), name: name.clone() }));
            }
        }
        let was = Facts::of(base);
        if was.target != live.facts.target {
            self.filled.push(Step::Edit(Edit::Target { node, target: live.facts.target.clone() }));
        }
        self.xattrs(node, &was, &live.facts);
        let plain =
            |facts: &Facts| (facts.mode, facts.uid, facts.gid, facts.flags, facts.project, facts.modified);
        if plain(&was) != plain(&live.facts) || live.source != Source::Of(Side::Base) {
            let attributes = attributes(base, &live.facts);
            self.told.push(Step::Edit(Edit::Attributes { node, attributes }));
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

    /// The base's version of a file beside the clone's.
    fn beside(&mut self, merge: &Merge<'_>, at: usize, label: &str) {
        let (Some(ino), Some(live)) = (merge.objects.all[at].base, merge.fates[at].live()) else { return };
        let Some((folder, name)) = live.names.first() else { return };
        let file = merge.file(Version::Base, ino);
        let free = |name: &[u8]| {
            merge
                .fates
                .iter()
                .filter_map(Fate::live)
                .all(|live| live.names.iter().all(|(above, known)| above != folder || known != name))
        };
        let Some(name) = (0..).map(|n| beside_name(name, label, n)).find(|name| free(name)) else { return };
        let id = self.next;
        self.next += 1;
        let facts = Facts::of(file);
        let node = Node::New(id);
        self.made.push(Step::Edit(Edit::Make { id, kind: Kind::File, attributes: attributes(file, &facts) }));
        let none = Facts { xattrs: Default::default(), ..facts.clone() };
        self.xattrs(node, &none, &facts);
        let folder = self::node(merge, *folder);
        self.linked.push(Step::Edit(Edit::Link { folder, name, to: node }));
        self.filled.push(Step::Copy { node, from: (Version::Base, ino) });
    }
}

/// `NAME.LABEL`, cut to what a name may have; `NAME.LABEL-2` when that is taken.
fn beside_name(name: &[u8], label: &str, number: u32) -> Vec<u8> {
    let end = if number == 0 { format!(".{label}") } else { format!(".{label}-{}", number + 1) };
    let room = 255_usize.saturating_sub(end.len());
    [&name[..name.len().min(room)], end.as_bytes()].concat()
}

fn id(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// The node of an object in the filesystem that is edited.
fn node(merge: &Merge<'_>, at: usize) -> Node {
    merge.objects.all[at].base.map_or(Node::New(id(at)), Node::Old)
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

fn attributes(file: &File, facts: &Facts) -> Attributes {
    Attributes {
        mode: facts.mode,
        uid: facts.uid,
        gid: facts.gid,
        atime: file.accessed,
        ctime: file.changed.max(facts.modified),
        mtime: facts.modified,
        crtime: file.created.unwrap_or(Time::default()),
        flags: facts.flags,
        project: (facts.project != 0).then_some(facts.project),
    }
}
