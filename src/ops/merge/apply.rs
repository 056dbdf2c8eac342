//! The steps of a plan, carried out on a filesystem of the new base.

use super::derived::{BOOT_UNIT, Comeback, boot_unit};
use super::plan::Plan;
use super::steps::Step;
use super::tree::Tree;
use super::volumes::Volumes;
use super::{Three, Version};
use crate::error::{Error, Result};
use crate::guestfs::edit::{Attributes, Edit, Editor, Kind, Node, Report, Volume};
use crate::guestfs::ext4::Ino;
use crate::guestfs::{Time, Verdict, fsck};
use crate::ops::{Progress, check_cancelled};
use crate::pages::Pages;
use crate::units::{MIB, index, length};
use std::collections::BTreeSet;
use std::path::Path;

/// Content is read and written in pieces of this many bytes.
const PIECE: usize = index(MIB);
/// Where units of an administrator are, and what runs first at a boot.
const UNITS: &[u8] = b"/etc/systemd/system";
const WANTS: &[u8] = b"sysinit.target.wants";

/// Carries out `plan` on `volume`, which holds the new base's filesystem; then `e2fsck` must find nothing. `comebacks` are
/// those of all that the system has lost. `program` is our own one, `folder` has room for the filesystem's metadata.
///
/// # Errors
/// `NoSpace` when the filesystem is too small for both sides' files; `Corrupt` when `e2fsck` finds anything; what the
/// steps, or reading the three versions, give. The volume is then to be thrown away.
pub fn apply(
    (plan, comebacks): (&Plan, &BTreeSet<Comeback>),
    volumes: &Volumes<'_>,
    trees: Three<&Tree>,
    volume: &dyn Volume,
    (program, folder): (&Path, &Path),
    progress: &dyn Progress,
) -> Result<Report> {
    let mut editor = Editor::start(program, volume)?;
    for step in &plan.steps {
        check_cancelled(progress)?;
        match step {
            Step::Edit(edit) => editor.send(edit.clone())?,
            Step::Put { node, bytes } => put(&mut editor, *node, bytes)?,
            Step::Copy { node, from } => copy(&mut editor, *node, volumes, *from)?,
        }
    }
    add_boot_unit(&mut editor, comebacks, trees.base)?;
    let report = editor.finish()?;
    match fsck(program, volume, folder)? {
        Verdict::Clean => Ok(report),
        Verdict::Damaged(words) => Err(Error::corrupt(format!(
            "the merged filesystem is not clean, so it is not used; e2fsck says: {words}"
        ))),
    }
}

fn put(editor: &mut Editor<'_>, node: Node, bytes: &[u8]) -> Result<()> {
    editor.send(Edit::Content { node, size: length(bytes.len()) })?;
    for (number, piece) in bytes.chunks(PIECE).enumerate() {
        editor.write(node, length(number * PIECE), piece.to_vec())?;
    }
    Ok(())
}

fn copy(editor: &mut Editor<'_>, node: Node, volumes: &Volumes<'_>, from: (Version, u32)) -> Result<()> {
    let filesystem = &volumes.three.of_version(from.0).filesystem;
    let inode = filesystem.inode(Ino(from.1))?;
    let content = filesystem.content(&inode)?;
    editor.send(Edit::Content { node, size: content.size() })?;
    let mut buf = Pages::new(PIECE);
    content.stream(&mut buf, |at, data| editor.write(node, at, data.to_vec()))
}

/// Writes the unit that makes derived files again at the next boot, where the system has systemd.
fn add_boot_unit(editor: &mut Editor<'_>, comebacks: &BTreeSet<Comeback>, base: &Tree) -> Result<()> {
    let (Some(text), Some(units)) = (boot_unit(comebacks), base.find(UNITS)) else { return Ok(()) };
    let name = BOOT_UNIT;
    let known = |folder: u32, name: &[u8]| base.file(folder).children.get(name).copied();
    if known(units, name.as_bytes()).is_some() {
        return Ok(());
    }
    let mut next = u32::MAX;
    let mut make = |editor: &mut Editor<'_>, folder: Node, name: &[u8], kind: Kind, mode: u16| {
        let id = next;
        next -= 1;
        let now = base.file(units).changed;
        editor.send(Edit::Make { id, kind, attributes: attributes(mode, now) })?;
        editor.send(Edit::Link { folder, name: name.to_vec(), to: Node::New(id) })?;
        Ok::<_, Error>(Node::New(id))
    };
    let unit = make(editor, Node::Old(units), name.as_bytes(), Kind::File, 0o644)?;
    put(editor, unit, text.as_bytes())?;
    let wants = match known(units, WANTS) {
        Some(ino) => Node::Old(ino),
        None => make(editor, Node::Old(units), WANTS, Kind::Folder, 0o755)?,
    };
    let target = [UNITS, b"/", name.as_bytes()].concat();
    make(editor, wants, name.as_bytes(), Kind::Symlink(target), 0o777).map(drop)
}

fn attributes(mode: u16, now: Time) -> Attributes {
    Attributes { mode, atime: now, ctime: now, mtime: now, crtime: now, ..Attributes::default() }
}
