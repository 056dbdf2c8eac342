//! A raw file gets the blocks of the files that a disk is made of, where the host lets files share blocks: what lies there whole
//! is neither read nor written, and takes no room.

use super::scan::{Against, Early, Flat, complete};
use super::{Progress, check_cancelled};
use crate::disk::{Disk, DiskExtent, Layer, RawLayer};
use crate::error::{Error, Result};
use crate::storage::{HostFile, Storage};
use crate::units::{HostOffset, KIB, MIB};
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

/// Shorter runs are copied, which takes no longer.
const WORTH_SHARING: u64 = 64 * KIB;
/// So much is shared at once, so that a stop is noticed.
const STEP: u64 = 256 * MIB;
/// Runs that are kept in mind at most: of a disk in more pieces the rest is copied.
const MOST_RUNS: usize = 1 << 20;

/// A file that is being filled.
struct Sharing<'a> {
    out: &'a HostFile,
    block: u64,
    /// Runs of the disk that the file has, in order.
    runs: Vec<Range<u64>>,
    /// By layer: whether its file shares blocks with this one.
    willing: Vec<bool>,
}

/// Makes `out`, which is empty, the first `size` bytes of `disk` (zeros past its end), if it can share anything with the disk's
/// files. False, and nothing but its length is changed, when it cannot.
///
/// A file that somebody writes to meanwhile gives any of what it holds in this time: who wants sums takes them of `out`.
pub(super) fn share(disk: &Disk, out: &HostFile, size: u64, progress: &dyn Progress) -> Result<bool> {
    let cannot = |error| Error::io(format!("cannot make a file of {size} bytes"), error);
    let block = out.block_size().map_err(cannot)?.max(1);
    let mut sharing = Sharing { out, block, runs: Vec::new(), willing: Vec::new() };
    sharing.ask(disk)?;
    let bottom = sharing.bottom(disk, progress)?;
    out.set_len(size).map_err(cannot)?;
    if !sharing.willing.contains(&true) {
        return Ok(false);
    }
    if bottom && disk.layers().len() == 1 {
        return Ok(true);
    }
    sharing.upper(disk, size, bottom, progress)?;
    if !bottom && sharing.runs.is_empty() {
        sharing.empty()?;
        return out.set_len(size).map_err(cannot).map(|()| false);
    }
    // What is at the bottom of both is the same.
    let ours = if bottom { Some(shown(out)?) } else { None };
    let against = ours.as_ref().map(|ours| Against { disk: ours, shared: 1, exact: false });
    let flat = Flat(out);
    complete(disk, against, &sharing.runs, size, &Early::new(&flat, out), progress)?;
    Ok(true)
}

/// A raw file as a disk, for reading.
pub(super) fn shown(file: &HostFile) -> Result<Disk> {
    let file = file.try_clone().map_err(|error| Error::io("cannot read the copy", error))?;
    Disk::new(vec![Layer::Raw(RawLayer::new(Arc::new(file), false)?)])
}

impl Sharing<'_> {
    /// Tries it with the first block of each layer's file.
    fn ask(&mut self, disk: &Disk) -> Result<()> {
        for layer in disk.layers() {
            let shared = layer.host_file().map(|file| self.give(0, file, HostOffset(0), self.block));
            self.willing.push(shared.transpose()?.unwrap_or(false));
        }
        if self.willing.contains(&true) { self.empty() } else { Ok(()) }
    }

    /// Nothing may be left in the file: what is zero is not written over.
    fn empty(&self) -> Result<()> {
        self.out.set_len(0).map_err(|error| Error::io("cannot cut the copy", error))
    }

    /// Shares all of a raw file at the bottom of the disk, holes and all.
    fn bottom(&mut self, disk: &Disk, progress: &dyn Progress) -> Result<bool> {
        let Some(layer @ Layer::Raw(_)) = disk.layers().last() else { return Ok(false) };
        let Some(file) = layer.host_file().filter(|_| self.willing.last() == Some(&true)) else {
            return Ok(false);
        };
        let mut at = 0;
        while at < layer.size() {
            check_cancelled(progress)?;
            let len = STEP.min(layer.size() - at);
            if !self.give(at, file, HostOffset(at), len)? {
                return self.empty().map(|()| false);
            }
            at += len;
        }
        Ok(true)
    }

    /// Shares the long runs of the layers, but for those at the bottom when that is shared.
    fn upper(&mut self, disk: &Disk, size: u64, bottom: bool, progress: &dyn Progress) -> Result<()> {
        let lowest = disk.layers().len() - 1;
        for run in disk.runs(0..size.min(disk.size())) {
            check_cancelled(progress)?;
            let (range, extent) = run?;
            if extent.depth.is_some_and(|depth| !(bottom && depth == lowest)) {
                self.run(disk, range, &extent)?;
            }
        }
        Ok(())
    }

    /// Shares the whole blocks of a run, if they are many.
    fn run(&mut self, disk: &Disk, range: Range<u64>, extent: &DiskExtent) -> Result<()> {
        let (Some(depth), Some(host)) = (extent.depth, extent.host) else { return Ok(()) };
        let Some(file) = disk.layers()[depth].host_file().filter(|_| self.willing[depth]) else {
            return Ok(());
        };
        let start = range.start.next_multiple_of(self.block);
        let from = host + (start - range.start);
        let stored = file.metadata().map_err(|error| Error::io("cannot read a layer", error))?.len();
        let end = range.end.min(start.saturating_add(stored.saturating_sub(from.0)));
        let end = end / self.block * self.block;
        if end < start.saturating_add(WORTH_SHARING)
            || !from.0.is_multiple_of(self.block)
            || self.runs.len() >= MOST_RUNS
        {
            return Ok(());
        }
        if !self.give(start, file, from, end - start)? {
            self.willing[depth] = false;
            return Ok(());
        }
        match self.runs.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => self.runs.push(start..end),
        }
        Ok(())
    }

    fn give(&self, at: u64, file: &File, from: HostOffset, len: u64) -> Result<bool> {
        let shared = self.out.share(HostOffset(at), file, from, len);
        shared.map_err(|error| Error::io("cannot make a copy that shares its blocks", error))
    }
}
