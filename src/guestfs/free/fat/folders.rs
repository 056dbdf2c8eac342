//! Folders of a FAT filesystem: each entry starts a chain.

use super::Chains;
use crate::error::Result;
use crate::guestfs::bits::Bits;
use crate::guestfs::fat::{Layout, Width, damaged};
use crate::guestfs::partitions::{Bytes, u16_at, u32_at};
use crate::units::{GuestOffset, index};

const ENTRY: usize = 32;
const DELETED: u8 = 0xe5;
/// The label of the filesystem, or a part of a long name.
const LABEL: u8 = 8;
/// Most folders that wait to be looked through.
const MOST: usize = 4 << 20;
const FOLDER: u8 = 0x10;

/// Looks through all folders. The starts of chains are counted: each is of one file, and where none is, the cluster is
/// in the midst of one, lost, or bad.
pub(super) fn check(bytes: &impl Bytes, boot: &Layout, chains: &Chains) -> Result<()> {
    let mut walk = Walk { bytes, boot, chains, started: Bits::new(boot.end), folders: Vec::new() };
    if boot.width == Width::ThirtyTwo {
        walk.start(boot.root_cluster, true)?;
    } else {
        let mut root = vec![0; index(boot.root_len)];
        bytes.read(&mut root, GuestOffset(boot.root))?;
        walk.entries(&root)?;
    }
    while let Some(first) = walk.folders.pop() {
        walk.folder(first)?;
    }
    Ok(())
}

struct Walk<'a, B> {
    bytes: &'a B,
    boot: &'a Layout,
    chains: &'a Chains,
    /// Clusters that some file starts with.
    started: Bits,
    /// First clusters of folders that are to be looked through: no two are the same.
    folders: Vec<u32>,
}

impl<B: Bytes> Walk<'_, B> {
    /// A file or folder that starts with `cluster`.
    fn start(&mut self, cluster: u32, is_folder: bool) -> Result<()> {
        let sound = (2..self.boot.end).contains(&cluster)
            && self.chains.used.has(cluster)
            && !self.chains.inner.has(cluster)
            && self.started.set(cluster);
        if !sound {
            return Err(damaged(format_args!(
                "a file starts with cluster {cluster}, which is free or another one's"
            )));
        }
        if is_folder && self.folders.len() >= MOST {
            return Err(damaged("it has more folders than any known one"));
        }
        if is_folder {
            self.folders.push(cluster);
        }
        Ok(())
    }

    fn folder(&mut self, first: u32) -> Result<()> {
        let mut cluster = first;
        let mut content = vec![0; index(self.boot.cluster)];
        // No chain has a loop: none of its clusters is led to twice, and nothing leads to the first one.
        loop {
            self.bytes.read(&mut content, GuestOffset(self.boot.at(cluster)))?;
            if !self.entries(&content)? {
                return Ok(());
            }
            match self.next(cluster)? {
                Some(next) => cluster = next,
                None => return Ok(()),
            }
        }
    }

    /// Takes the entries of a part of a folder; false when the folder ends there.
    fn entries(&mut self, content: &[u8]) -> Result<bool> {
        for entry in content.chunks_exact(ENTRY) {
            let (name, attributes) = (entry[0], entry[11]);
            if name == 0 {
                return Ok(false);
            }
            if name == DELETED || name == b'.' || attributes & LABEL != 0 {
                continue;
            }
            let is_wide = self.boot.width == Width::ThirtyTwo;
            let high = if is_wide { u32::from(u16_at(entry, 20)) << 16 } else { 0 };
            let (cluster, size) = (high | u32::from(u16_at(entry, 26)), u32_at(entry, 28));
            let is_folder = attributes & FOLDER != 0;
            if cluster != 0 {
                self.start(cluster, is_folder)?;
            } else if is_folder || size != 0 {
                return Err(damaged("a file or folder has content, and no cluster"));
            }
        }
        Ok(true)
    }

    /// The cluster in which a chain goes on.
    fn next(&self, cluster: u32) -> Result<Option<u32>> {
        let width = self.boot.width;
        let at = width.place(cluster);
        let mut raw = [0; 4];
        let len = if width == Width::ThirtyTwo { 4 } else { 2 };
        self.bytes.read(&mut raw[..len], GuestOffset(self.boot.table + at))?;
        let entry = width.entry(&raw, cluster, at);
        Ok((2..self.boot.end).contains(&entry).then_some(entry))
    }
}
