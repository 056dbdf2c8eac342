//! The work on the disk: the filesystem, the partition and the table, in the order that never cuts what is in use.

use super::disk::{Layout, named};
use super::{Changed, Minimum, Resized};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::guestfs::relayout::{Content, Slot};
use crate::guestfs::{ExtResize, SharedDisk, Verdict, Window, fsck};
use crate::units::GuestOffset;
use std::path::{Path, PathBuf};

/// What can be done where swap space is in the way: only its guest knows whether it can do without.
const SWAP_CAN_GO: &str = "; swap space can go: in its guest `swapoff` it, take it out of /etc/fstab and delete its partition, \
                           and resize then";

/// A disk that nobody else sees, to be made smaller or larger.
pub(super) struct Job<'a> {
    /// The disk, at least as large as the larger one of the two sizes.
    pub(super) disk: SharedDisk,
    /// Bytes that it had.
    pub(super) from: u64,
    /// Makes an empty folder to mount it at.
    pub(super) mount_point: &'a dyn Fn() -> Result<PathBuf>,
    /// A folder for files of the work.
    pub(super) folder: &'a Path,
    pub(super) program: &'a Path,
    pub(super) stop: &'a dyn Fn() -> bool,
    /// Whether anything is done; otherwise it is only said.
    pub(super) act: bool,
}

/// A filesystem that is cut or grows.
struct Ext {
    slot: Slot,
    content: Content,
}

impl Job<'_> {
    pub(super) fn disk(&self) -> &Disk {
        (*self.disk).as_ref()
    }

    /// The first `size` bytes.
    fn first(&self, size: u64) -> Result<Window<&Disk>> {
        Window::at(self.disk(), GuestOffset(0), size)
    }

    /// Makes it smaller: to `size`, or to the least that it can have.
    pub(super) fn smaller(&self, size: Option<u64>, mut done: Resized) -> Result<Resized> {
        let layout = Layout::read(&self.first(self.from)?)?;
        let Some((slot, content)) = layout.last() else {
            let least = layout.table.least(layout.table.grain());
            return self.cut_room(&layout, size, least, "its partition table".to_owned(), done);
        };
        let end = slot.partition.end().0;
        let is_cut = size.is_none_or(|size| layout.table.room(size) < end);
        if !is_cut || !can_shrink(&slot, content) {
            return self.cut_room(&layout, size, layout.table.least(end), named(&slot, content), done);
        }
        let ext = Ext { slot, content };
        let begun = self.begin(&ext, slot.partition.len)?;
        let minimum = self.minimum(&layout, &ext, &begun)?;
        let size = size.unwrap_or(minimum.bytes.min(self.from));
        if size < minimum.bytes {
            return Err(too_small(size, &minimum));
        }
        done.minimum = Some(minimum);
        if size == self.from {
            begun.end()?;
            return Ok(done);
        }
        done.to = size;
        let new_end = layout.table.last_end(size).min(end);
        if new_end < end {
            let len = new_end - slot.partition.start.0;
            if self.act && begun.size()? > len {
                begun.resize(len)?;
            }
            done.changed = Some(ext.changed(len));
        }
        begun.end()?;
        self.finish(&layout, size, &ext, new_end)?;
        Ok(done)
    }

    /// Makes a disk smaller of which only free room is cut.
    fn cut_room(
        &self,
        layout: &Layout,
        size: Option<u64>,
        least: u64,
        bound_by: String,
        mut done: Resized,
    ) -> Result<Resized> {
        let size = size.unwrap_or(least.min(self.from));
        let room = layout.table.room(size);
        let in_the_way = layout.behind(room);
        if !in_the_way.is_empty() {
            let hint = if layout.has_swap_behind(room) { SWAP_CAN_GO } else { "" };
            return Err(Error::unsupported(format!(
                "a disk of {size} bytes would cut {in_the_way}: only an ext2, ext3 or ext4 filesystem that lies last can be \
                 made smaller; without that the disk can have {least} bytes{hint}"
            )));
        }
        // A filesystem that could be made smaller bounds nothing.
        let is_bound = layout.last().is_none_or(|(slot, content)| !can_shrink(&slot, content));
        done.minimum = is_bound.then(|| Minimum { bytes: least.min(self.from), bound_by, used: None });
        if size < self.from {
            done.to = size;
            self.rewrite(layout, size, None)?;
        }
        Ok(done)
    }

    /// Makes it larger.
    pub(super) fn larger(&self, size: u64, image_only: bool, mut done: Resized) -> Result<Resized> {
        done.to = size;
        if image_only {
            done.note = Some("the guest has to grow its partition and filesystem itself".to_owned());
            return Ok(done);
        }
        let layout = Layout::read(&self.first(self.from)?)?;
        let new_end = layout.table.last_end(size);
        match layout.last() {
            Some((slot, content @ Content::Ext(_))) if !slot.is_container => {
                let ext = Ext { slot, content };
                let len = new_end.saturating_sub(slot.partition.start.0);
                if new_end <= slot.partition.end().0 {
                    self.rewrite(&layout, size, None)?;
                    return Ok(done);
                }
                self.rewrite(&layout, size, ext.change(new_end))?;
                if self.act {
                    let begun = self.begin(&ext, len)?;
                    begun.resize(len)?;
                    begun.end()?;
                    self.verify(&ext, len)?;
                }
                done.changed = Some(ext.changed(len));
            }
            last => {
                self.rewrite(&layout, size, None)?;
                let why = last.map(|(slot, content)| format!("{} is left as it is: ", named(&slot, content)));
                let hint = if let Some((_, Content::SWAP)) = last { SWAP_CAN_GO } else { "" };
                done.note = Some(format!("{}the new room is free{hint}", why.unwrap_or_default()));
            }
        }
        Ok(done)
    }

    fn begin(&self, ext: &Ext, len: u64) -> Result<ExtResize<'_>> {
        let place = (ext.slot.partition.start.0, len);
        ExtResize::begin(SharedDisk::clone(&self.disk), place, &(self.mount_point)()?, self.stop)
            .map_err(|error| error.at(ext))
    }

    fn minimum(&self, layout: &Layout, ext: &Ext, begun: &ExtResize<'_>) -> Result<Minimum> {
        let found = || Ok((begun.least()?, begun.used()?));
        let (least, used) = found().map_err(|error: Error| error.at(ext))?;
        let start = ext.slot.partition.start.0;
        let end =
            (start.saturating_add(least)).next_multiple_of(layout.table.grain()).max(layout.others_end());
        let bytes = layout.table.least(end).min(self.from);
        Ok(Minimum { bytes, bound_by: ext.to_string(), used: Some(used) })
    }

    /// The table for a filesystem that is smaller by now.
    fn finish(&self, layout: &Layout, size: u64, ext: &Ext, new_end: u64) -> Result<()> {
        if self.act {
            self.verify(ext, new_end - ext.slot.partition.start.0)?;
        }
        let change = ext.change(new_end).filter(|_| new_end < ext.slot.partition.end().0);
        self.rewrite(layout, size, change)
    }

    /// The filesystem lies in the first `len` bytes of its place, and is in order.
    fn verify(&self, ext: &Ext, len: u64) -> Result<()> {
        let window = Window::at(self.disk(), ext.slot.partition.start, len)?;
        match fsck(self.program, &window, self.folder).map_err(|error| error.at(ext))? {
            Verdict::Clean => Ok(()),
            Verdict::Damaged(words) => {
                let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
                Err(Error::corrupt(format!("{ext} is not in order afterwards, nothing was changed: {words}")))
            }
        }
    }

    /// Writes the table for a disk of `size` bytes, and reads it again.
    fn rewrite(&self, layout: &Layout, size: u64, change: Option<(u32, u64)>) -> Result<()> {
        if !size.is_multiple_of(layout.table.sector()) {
            let sector = layout.table.sector();
            return Err(Error::invalid(format!(
                "its partition table counts in {sector} bytes, and so must its size"
            )));
        }
        let old = self.first(self.from)?;
        let writes = layout.table.rewrite(&old, size, change)?;
        if !self.act {
            return Ok(());
        }
        for (at, bytes) in writes {
            self.disk().write(&bytes, at)?;
        }
        let bare = layout.table.slots(size).iter().any(|slot| slot.partition.number == 0);
        if bare || layout.is_same(&Layout::read(&self.first(size)?)?, change) {
            return Ok(());
        }
        Err(Error::corrupt("its partitions are not what they were meant to be; nothing was changed"))
    }
}

impl Ext {
    fn change(&self, end: u64) -> Option<(u32, u64)> {
        Some((self.slot.partition.number, end)).filter(|(number, _)| *number > 0)
    }

    fn changed(&self, to: u64) -> Changed {
        let Slot { partition, .. } = self.slot;
        let (start, from) = (partition.start, partition.len);
        Changed { partition: partition.number, content: self.content.to_string(), start, from, to }
    }
}

impl std::fmt::Display for Ext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&named(&self.slot, self.content))
    }
}

/// Whether something that lies last can be made smaller.
fn can_shrink(slot: &Slot, content: Content) -> bool {
    matches!(content, Content::Ext(_)) && !slot.is_container
}

fn too_small(size: u64, minimum: &Minimum) -> Error {
    let Minimum { bytes, bound_by, used } = minimum;
    let used = used.map(|used| format!(", which has {used} bytes in use")).unwrap_or_default();
    Error::invalid(format!(
        "{size} bytes are too few: {bytes} is the least for {bound_by}{used}; --minimum makes the disk as small as that"
    ))
}
