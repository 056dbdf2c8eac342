//! What becomes of one file.

use super::rules::Winner;
use super::tree::File;
use super::{Side, Three};
use crate::guestfs::Time;
use crate::guestfs::ext4::Device;
use serde::Serialize;
use std::collections::BTreeMap;

/// What both sides did to the same thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Clash {
    /// Both changed the content.
    Content,
    /// Both added it, with different content.
    Added,
    /// The clone deleted what the base changed.
    DeletedInClone,
    /// The base deleted what the clone changed.
    DeletedInBase,
    /// Both moved it, to different places.
    Moved,
    /// Both changed owner, permissions, flags or attributes.
    Metadata,
    /// Two different things would have the same name.
    Name,
    /// One side deleted the folder that the other put something into.
    Folder,
    /// Both changed a database that is not merged as a file.
    Database,
    /// Packages of both sides have the file.
    Package,
}

/// Something that both sides did, differently.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Conflict {
    /// Path in the guest, not always UTF-8.
    #[serde(serialize_with = "lossy")]
    pub path: Vec<u8>,
    /// What happened.
    pub clash: Clash,
    /// Whose version is taken; nobody's when the rules do not say, and then nothing is changed at all.
    pub taken: Option<Side>,
    /// What else there is to say.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// Both changes of a text, for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub diff: String,
}

pub(super) fn lossy<S: serde::Serializer>(path: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(path))
}

/// Where a file's bytes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Of(Side),
    Bytes(Vec<u8>),
}

/// What an inode says, after the merge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) flags: u32,
    pub(super) project: u32,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) target: Vec<u8>,
    pub(super) device: Option<Device>,
    pub(super) modified: Time,
}

/// A file of the result.
#[derive(Clone, Debug)]
pub(super) struct Live {
    /// Names: the folder's object, and the name; sorted.
    pub(super) names: Vec<(usize, Vec<u8>)>,
    pub(super) source: Source,
    pub(super) facts: Facts,
    /// It is there because a rule or a package says so: the folders above it are there too.
    pub(super) forced: bool,
}

/// What becomes of an object.
#[derive(Clone, Debug)]
pub(super) enum Fate {
    /// It is as the base has it: what it is stands there, and takes no memory here. So are most.
    Kept,
    Live(Box<Live>),
    /// It goes; for a folder, which side deleted it.
    Dead(Side),
}

impl Fate {
    /// What is known of it, if that is not only what the base has.
    pub(super) fn live(&self) -> Option<&Live> {
        match self {
            Self::Live(live) => Some(live),
            Self::Kept | Self::Dead(_) => None,
        }
    }

    pub(super) fn is_dead(&self) -> bool {
        matches!(self, Self::Dead(_))
    }

    pub(super) fn is_forced(&self) -> bool {
        self.live().is_some_and(|live| live.forced)
    }
}

impl Facts {
    pub(super) fn of(file: &File) -> Self {
        Self {
            mode: file.mode,
            uid: file.uid,
            gid: file.gid,
            flags: file.flags,
            project: file.project,
            xattrs: file.xattrs.clone(),
            target: file.target.clone(),
            device: file.device,
            modified: file.modified,
        }
    }
}

/// Merges the facts of three versions (the old one may be missing); what both changed goes to `winner`, and says that
/// there was a clash, if it is not only the time.
pub(super) fn facts(files: Three<Option<&File>>, winner: Side) -> Option<(Facts, Vec<&'static str>)> {
    let (base, clone) = (files.base?, files.clone?);
    let mut clashes = Vec::new();
    let mut side = |what: &'static str, clear: Option<Side>| {
        clear.unwrap_or_else(|| {
            clashes.push(what);
            winner
        })
    };
    let pick = |side: Side| if side == Side::Base { base } else { clone };
    let mode = pick(side("permissions", clear(files, |file| file.mode))).mode;
    let uid = pick(side("owner", clear(files, |file| file.uid))).uid;
    let gid = pick(side("group", clear(files, |file| file.gid))).gid;
    let flags = pick(side("flags", clear(files, |file| file.flags))).flags;
    let project = pick(side("project", clear(files, |file| file.project))).project;
    let mut xattrs = BTreeMap::new();
    let mut names: Vec<&Vec<u8>> = base.xattrs.keys().chain(clone.xattrs.keys()).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let of = pick(side("extended attributes", clear(files, |file| file.xattrs.get(name))));
        if let Some(value) = of.xattrs.get(name) {
            xattrs.insert(name.clone(), value.clone());
        }
    }
    let modified = match clear(files, |file| file.modified) {
        Some(side) => pick(side).modified,
        None => base.modified.max(clone.modified),
    };
    clashes.dedup();
    let (target, device) = (base.target.clone(), base.device);
    Some((Facts { mode, uid, gid, flags, project, xattrs, target, device, modified }, clashes))
}

/// The side that is right without asking; without an old version only when both are the same.
fn clear<'a, T: PartialEq>(files: Three<Option<&'a File>>, of: impl Fn(&'a File) -> T) -> Option<Side> {
    let three = Three { old: files.old.map(&of), base: files.base.map(&of), clone: files.clone.map(&of) };
    match three.old {
        None => (three.base == three.clone).then_some(Side::Base),
        Some(_) => three.clear(),
    }
}

/// Whether `other` is a changed `old`, but for times, names and content.
pub(super) fn differ(old: &File, other: &File) -> bool {
    (old.mode, old.uid, old.gid, old.flags, old.project)
        != (other.mode, other.uid, other.gid, other.flags, other.project)
        || old.xattrs != other.xattrs
        || old.target != other.target
}

/// The side that `winner` gives a clash to for the time being: the clone when nobody may decide.
pub(super) fn provisional(winner: Winner) -> Side {
    winner.side().unwrap_or(Side::Clone)
}
