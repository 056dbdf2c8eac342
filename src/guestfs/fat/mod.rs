//! FAT12, FAT16 and FAT32 with long names, as on an EFI system partition: read, and changed file by file.
//!
//! Sources: Microsoft's FAT specification (fatgen103, 2000) and, where it leaves a choice, what Linux and `fsck.fat` do.
//!
//! Reader and writer are our own: a guest wrote the bytes, and a merge is about attributes and times as well, each entry
//! that stays being kept as it is. What is read here is in order, or it is refused:
//! every cluster belongs to one file at most, so no chain has a circle and all of them together are no longer than the
//! table; both tables agree; each long name belongs to its short one; no two names of a folder are the same; nothing is
//! in use that no file has. So a change starts from what `fsck.fat` finds clean.
//!
//! Limits: 4 million clusters, 100,000 files, folders 64 deep; short names beyond ASCII without a long one are refused.

mod folder;
mod layout;
mod names;
mod table;
mod write;

pub use folder::{Item, Stamps, Tree};
pub(super) use layout::{Layout, Width, is_boot_sector};
pub use names::fold;
pub use write::{Content, Supply, Target, Wanted, rewrite};

use super::partitions::Bytes;
use crate::error::{Error, Result};
use crate::units::{GuestOffset, KIB, index, length};
use table::Table;

/// Attributes that are about the file: read-only, hidden, system.
pub const ATTRIBUTES: u8 = 0x07;

/// Most clusters of a filesystem, and largest of them, that are looked at.
const CLUSTERS: u32 = 4 << 20;
const CLUSTER: u64 = 64 * KIB;
/// Bytes of a label, and what stands for none.
const LABEL: usize = 11;
const NO_LABEL: &[u8] = b"NO NAME    ";

/// One FAT filesystem, all of whose table is in order.
#[derive(Clone, Debug)]
pub struct Fat<B> {
    bytes: B,
    layout: Layout,
    table: Table,
    serial: u32,
}

impl<B: Bytes> Fat<B> {
    /// The filesystem that begins at the first byte of `bytes`.
    ///
    /// # Errors
    /// `Invalid` when there is none; `Corrupt` when it breaks the format; `Unsupported` when it was not unmounted, or is
    /// too large; whatever reading gives.
    pub fn open(bytes: B) -> Result<Self> {
        let layout = Layout::read(&bytes)?;
        let Some(serial) = layout.serial else { return Err(Error::invalid("there is no FAT filesystem")) };
        if layout.state & 1 != 0 {
            return Err(dirty());
        }
        if layout.end - 2 > CLUSTERS || layout.cluster > CLUSTER {
            return Err(Error::unsupported(
                "a FAT filesystem of more than 4 million clusters, or with clusters of more than 64 KiB, is not merged \
                 by files",
            ));
        }
        let table = Table::read(&bytes, &layout)?;
        Ok(Self { bytes, layout, table, serial })
    }

    /// What tells it from other filesystems.
    #[must_use]
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// Its label, as Linux knows it: the one in the root folder, else the boot sector's; empty when it has none.
    ///
    /// # Errors
    /// As [`Fat::tree`].
    pub fn label(&self) -> Result<Vec<u8>> {
        let mut label = self.tree()?.label;
        label.truncate(LABEL);
        if label.is_empty() {
            label.resize(LABEL, 0);
            self.bytes.read(&mut label, GuestOffset(self.layout.label))?;
        }
        if label == NO_LABEL {
            label.clear();
        }
        label.truncate(label.iter().rposition(|byte| !matches!(byte, b' ' | 0)).map_or(0, |last| last + 1));
        Ok(label)
    }

    /// All its files and folders.
    ///
    /// # Errors
    /// `Corrupt` when it breaks the format, `Unsupported` when it has too many files; whatever reading gives.
    pub fn tree(&self) -> Result<Tree> {
        folder::tree(self)
    }

    /// Fills `buf` with the bytes of a file from `at` on, which has that many.
    ///
    /// # Errors
    /// `Invalid` past the file's end; whatever reading gives.
    pub fn read(&self, item: &Item, at: u64, buf: &mut [u8]) -> Result<()> {
        if at.checked_add(length(buf.len())).is_none_or(|end| end > u64::from(item.size)) {
            return Err(Error::invalid("a read past the end of a file"));
        }
        self.read_chain(&item.chain, at, buf)
    }

    /// Fills `buf` from byte `at` of a chain of clusters on, a run of neighbours at a time.
    fn read_chain(&self, chain: &[u32], at: u64, buf: &mut [u8]) -> Result<()> {
        let size = self.layout.cluster;
        let (mut at, mut rest) = (at, buf);
        while !rest.is_empty() {
            let first = index(at / size);
            let run = run(chain, first).ok_or_else(|| damaged("a chain of clusters ends too early"))?;
            let inside = at % size;
            let len = (run * size - inside).min(length(rest.len()));
            let (now, later) = rest.split_at_mut(index(len));
            self.bytes.read(now, GuestOffset(self.layout.at(chain[first]) + inside))?;
            (at, rest) = (at + len, later);
        }
        Ok(())
    }
}

/// How many clusters from number `first` of a chain on follow each other on the disk.
fn run(chain: &[u32], first: usize) -> Option<u64> {
    let rest = chain.get(first..).filter(|rest| !rest.is_empty())?;
    Some(1 + length(rest.windows(2).take_while(|pair| pair[1] == pair[0] + 1).count()))
}

pub(super) fn damaged(what: impl std::fmt::Display) -> Error {
    Error::corrupt(format!("the FAT filesystem is damaged ({what}); mend it with fsck.fat in its guest"))
}

fn dirty() -> Error {
    Error::unsupported(
        "a FAT filesystem was not unmounted, so what is in it may be torn: start the guest and shut it down first",
    )
}
