//! One file of two disks, line by line.

use super::files::{Located, counterparts, kind_word};
use super::{Both, Pair, is_related};
use crate::error::{Error, Kind, Result};
use crate::guestfs::ext4::{FileKind, Ino};
use crate::ops::merge::same::is_same;
use crate::ops::merge::unified::unified;
use crate::ops::merge::volumes::Volume;
use crate::ops::{Progress, check_cancelled};
use crate::pages::Pages;
use crate::units::{GIB, MIB, index, length};
use serde::Serialize;

/// Longest file whose text is compared; those that are longer are no text for people.
const TEXT_MAX: u64 = 4 * MIB;
/// Longest file that is digested, holes included.
const DIGEST_MAX: u64 = 256 * GIB;
const PIECE: usize = 1 << 20;

/// One file on one of the two disks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileSide {
    /// Its path; what is no UTF-8 is replaced.
    pub path: String,
    /// What it is.
    pub kind: &'static str,
    /// Length in bytes.
    pub size: u64,
    /// BLAKE3 of its bytes, of a regular file that differs and is at most 256 GiB long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// What differs in one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ContentDifference {
    /// On the old disk.
    pub old: Option<FileSide>,
    /// On the new disk.
    pub new: Option<FileSide>,
    /// Whether it holds the same.
    pub same: bool,
    /// The difference in the unified format, when both are text and differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diff: Option<String>,
}

/// A file that was found.
struct File<'a, 'd> {
    volume: &'a Volume<'d>,
    path: Vec<u8>,
    ino: u32,
}

/// Compares the file at `path` of the two disks; a file that was moved is found by either path.
///
/// # Errors
/// `NotFound`, `Invalid` for a folder, or when several filesystems have the path and none is said; as [`super::diff`].
pub(super) fn content(pair: &Pair, wanted: &[u8], progress: &dyn Progress) -> Result<ContentDifference> {
    let (partition, path) = split(wanted);
    let mut found: Vec<(u32, ContentDifference)> = Vec::new();
    for place in pair.places()? {
        let (number, Some(places)) = (place.number(), place.both()) else { continue };
        if partition.is_some_and(|wanted| wanted != number) {
            continue;
        }
        let Some(volumes) = pair.volumes(&places)? else { continue };
        let difference = in_volumes(pair, &volumes, path, progress)
            .map_err(|error| if number == 0 { error } else { error.at(format!("p{number}")) })?;
        found.extend(difference.map(|difference| (number, difference)));
    }
    let shown = String::from_utf8_lossy(wanted);
    if let [(first, _), (second, _), ..] = &found[..] {
        return Err(Error::invalid(format!(
            "several filesystems have {shown}; say which one: p{first}:/.. or p{second}:/.."
        )));
    }
    let missing =
        || Error::new(Kind::NotFound, format!("no ext2, ext3 or ext4 filesystem of either disk has {shown}"));
    found.pop().map(|(_, difference)| difference).ok_or_else(missing)
}

/// `pN:/path` as the partition and the path.
fn split(wanted: &[u8]) -> (Option<u32>, &[u8]) {
    let number = || {
        let end = wanted.iter().position(|byte| *byte == b':')?;
        let number = std::str::from_utf8(wanted.get(1..end)?).ok()?.parse().ok()?;
        (wanted[0] == b'p').then_some((Some(number), &wanted[end + 1..]))
    };
    number().unwrap_or((None, wanted))
}

fn in_volumes(
    pair: &Pair,
    volumes: &Both<Volume<'_>>,
    path: &[u8],
    progress: &dyn Progress,
) -> Result<Option<ContentDifference>> {
    let (old, new) = (volumes.old.tree()?, volumes.new.tree()?);
    let [was, is] = counterparts(&old, &new, is_related(pair, volumes), path)?;
    if was.is_none() && is.is_none() {
        return Ok(None);
    }
    let file = |volume, found: Option<Located>| found.map(|(path, ino)| File { volume, path, ino });
    let (was, is) = (file(&volumes.old, was), file(&volumes.new, is));
    let same = match (&was, &is) {
        (Some(was), Some(is)) => was.is_same(is, pair.shared, progress)?,
        _ => false,
    };
    let mut difference = ContentDifference {
        old: side(was.as_ref(), same, progress)?,
        new: side(is.as_ref(), same, progress)?,
        same,
        diff: None,
    };
    if !same {
        difference.diff = text(pair, was.as_ref(), is.as_ref())?;
    }
    Ok(Some(difference))
}

fn side(file: Option<&File<'_, '_>>, same: bool, progress: &dyn Progress) -> Result<Option<FileSide>> {
    let Some(file) = file else { return Ok(None) };
    let inode = file.volume.filesystem.inode(Ino(file.ino))?;
    let path = String::from_utf8_lossy(&file.path).into_owned();
    if inode.kind == FileKind::Directory {
        return Err(Error::invalid(format!("{path} is a folder; give a file")));
    }
    let digested = !same && inode.kind == FileKind::Regular && inode.size <= DIGEST_MAX;
    let digest = digested.then(|| file.digest(progress)).transpose()?;
    Ok(Some(FileSide { path, kind: kind_word(inode.kind), size: inode.size, digest }))
}

/// The difference of two texts; an absent file is an empty one.
fn text(pair: &Pair, was: Option<&File<'_, '_>>, is: Option<&File<'_, '_>>) -> Result<Option<String>> {
    let bytes = |file: Option<&File<'_, '_>>| file.map_or(Ok(Some(Vec::new())), File::bytes);
    let (Some(a), Some(b)) = (bytes(was)?, bytes(is)?) else { return Ok(None) };
    let label = |name: &str, file: Option<&File<'_, '_>>| {
        file.map_or_else(|| "/dev/null".to_owned(), |file| format!("{name}:{}", super::shown(&file.path)))
    };
    let labels = [label(&pair.names.old, was), label(&pair.names.new, is)];
    let diff = unified(&a, &b, [&labels[0], &labels[1]]);
    // What it cannot compare line by line is a sentence, and two absent or empty texts are nothing.
    Ok(diff.starts_with("--- ").then_some(diff))
}

impl File<'_, '_> {
    fn is_same(&self, other: &Self, shared: usize, progress: &dyn Progress) -> Result<bool> {
        let one = self.volume.filesystem.inode(Ino(self.ino))?;
        let two = other.volume.filesystem.inode(Ino(other.ino))?;
        if one.kind != two.kind {
            return Ok(false);
        }
        match one.kind {
            FileKind::Regular => {
                is_same((self.volume, self.ino), (other.volume, other.ino), shared, progress)
            }
            FileKind::Symlink => {
                Ok(self.volume.filesystem.link(&one)? == other.volume.filesystem.link(&two)?)
            }
            _ => Ok(one.device == two.device),
        }
    }

    /// What is looked at line by line; nothing for what is too long, and for special files.
    fn bytes(&self) -> Result<Option<Vec<u8>>> {
        let inode = self.volume.filesystem.inode(Ino(self.ino))?;
        match inode.kind {
            FileKind::Symlink => Ok(Some(self.volume.filesystem.link(&inode)?)),
            FileKind::Regular if inode.size <= TEXT_MAX => {
                let mut bytes = vec![0; index(inode.size)];
                self.volume.filesystem.content(&inode)?.read(0, &mut bytes)?;
                Ok(Some(bytes))
            }
            _ => Ok(None),
        }
    }

    fn digest(&self, progress: &dyn Progress) -> Result<String> {
        let inode = self.volume.filesystem.inode(Ino(self.ino))?;
        let content = self.volume.filesystem.content(&inode)?;
        let (mut hasher, mut buf, mut at) = (blake3::Hasher::new(), Pages::new(PIECE), 0);
        progress.total(content.size());
        while at < content.size() {
            check_cancelled(progress)?;
            let len = content.read(at, &mut buf)?;
            hasher.update(&buf[..len]);
            progress.advance(length(len));
            at += length(len);
        }
        Ok(hasher.finalize().to_hex().to_string())
    }
}
