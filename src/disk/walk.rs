//! The runs of a disk, one after the other.

use super::{Disk, DiskExtent};
use crate::error::Result;
use crate::qcow2::Source;
use crate::units::GuestOffset;
use std::ops::Range;

/// Who asks for a disk's runs from its start to its end. What a layer said is kept as long as it holds: a long run of one
/// layer is looked up once, however many runs of another one lie beside it.
///
/// What is written meanwhile must lie before the place that is asked for.
#[derive(Debug)]
pub struct Walk<'a> {
    disk: &'a Disk,
    /// What each layer said last, and where.
    said: Vec<(Range<u64>, Source)>,
}

impl<'a> Walk<'a> {
    /// Nothing was asked yet.
    #[must_use]
    pub fn new(disk: &'a Disk) -> Self {
        Self { disk, said: vec![(0..0, Source::Below); disk.layers.len()] }
    }

    /// The disk.
    #[must_use]
    pub fn disk(&self) -> &'a Disk {
        self.disk
    }

    /// As [`Disk::extent`].
    ///
    /// # Errors
    /// As [`Disk::extent`].
    pub fn extent(&mut self, at: GuestOffset) -> Result<DiskExtent> {
        self.disk.decided(at, |depth, layer, limit| {
            let (range, source) = &mut self.said[depth];
            if !range.contains(&at.0) {
                let (len, found) = layer.extent(at, limit)?;
                (*range, *source) = (at.0..at.0.saturating_add(len), found);
            }
            let source = match *source {
                Source::Data(host) => Source::Data(host + (at.0 - range.start)),
                other => other,
            };
            Ok((range.end - at.0, source))
        })
    }
}

/// The runs of a range of a disk.
#[derive(Debug)]
pub struct Runs<'a> {
    walk: Walk<'a>,
    at: u64,
    end: u64,
}

impl Disk {
    /// The runs of `range`, which must lie inside the disk, one after the other and cut to it; a failure ends them. As with a
    /// [`Walk`], what is written meanwhile must lie in runs that have come.
    pub fn runs(&self, range: Range<u64>) -> Runs<'_> {
        Runs { walk: Walk::new(self), at: range.start, end: range.end }
    }
}

impl Iterator for Runs<'_> {
    /// Where a run lies, and what is there.
    type Item = Result<(Range<u64>, DiskExtent)>;

    fn next(&mut self) -> Option<Self::Item> {
        let from = self.at;
        if from >= self.end {
            return None;
        }
        let extent = self.walk.extent(GuestOffset(from));
        self.at = extent.as_ref().map_or(self.end, |extent| from + extent.len.clamp(1, self.end - from));
        Some(extent.map(|extent| (from..self.at, extent)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::disk::{Layer, RawLayer};
    use crate::qcow2::{CreateOptions, Image, OpenOptions, create};
    use crate::storage::{Memory, Storage};
    use crate::units::{GIB, HostOffset, MIB, index};
    use std::sync::Arc;

    fn layer(storage: &Arc<Memory>, writable: bool) -> Layer {
        let options = OpenOptions { writable, metadata_cache: MIB };
        Layer::qcow2(Image::open(storage.clone(), options).unwrap())
    }

    #[test]
    fn a_walk_says_what_asking_at_each_place_says() {
        let files: [Arc<Memory>; 3] = std::array::from_fn(|_| Arc::default());
        for file in &files[..2] {
            create(&**file, &CreateOptions::new(8 * MIB)).unwrap();
        }
        (0..8).for_each(|n| files[2].write_at(&[7; 5000], HostOffset(n * 901_120)).unwrap());
        let below = || RawLayer::new(files[2].clone(), false).unwrap();
        for (file, step) in [(&files[1], 300_000), (&files[0], 700_000)] {
            let disk = Disk::new(vec![layer(file, true), Layer::Raw(below())]).unwrap();
            for at in (0..7 * MIB).step_by(step) {
                disk.write(&[9; 9000], GuestOffset(at)).unwrap();
                disk.write_zeroes(GuestOffset(at + 65_536), 12_288).unwrap();
            }
            disk.close().unwrap();
        }
        let [top, middle] = [0, 1].map(|n| layer(&files[n], false));
        let disk = Disk::new(vec![top, middle, Layer::Raw(below())]).unwrap();
        let (mut walk, mut at, mut runs) = (Walk::new(&disk), 0, 0);
        while at < disk.size() {
            let said = walk.extent(GuestOffset(at)).unwrap();
            assert_eq!(said, disk.extent(GuestOffset(at)).unwrap(), "at {at}");
            // In the middle of a run as well.
            let middle = GuestOffset(at + said.len / 2);
            assert_eq!(walk.extent(middle).unwrap(), disk.extent(middle).unwrap(), "at {middle}");
            (at, runs) = (at + said.len, runs + 1);
        }
        assert!(runs > 60, "{runs}");
        let (from, to) = (MIB + 1, 5 * MIB + 7);
        let mut at = from;
        for run in disk.runs(from..to) {
            let (range, said) = run.unwrap();
            assert_eq!((range.start, said), (at, disk.extent(GuestOffset(at)).unwrap()));
            assert_eq!(range.end, (at + said.len).min(to));
            at = range.end;
        }
        assert_eq!(at, to);
        assert!(disk.runs(disk.size()..disk.size() + 1).all(|run| run.is_err()));
    }

    #[test]
    fn a_table_that_is_a_hole_says_what_its_entries_would_say() {
        const SIZE: u64 = 5 * GIB + 200 * MIB;
        for plain in [false, true] {
            let file: Arc<Memory> = Arc::default();
            let mut options = CreateOptions::new(SIZE);
            if plain {
                (options.cluster_bits, options.extended_l2) = (16, false);
            }
            create(&*file, &options).unwrap();
            let disk = Disk::new(vec![layer(&file, true)]).unwrap();
            // A slice in the middle of a table, the last cluster of a table, the last one of the disk; tables between them have none.
            for at in [700 * MIB, 3 * GIB - 4096, SIZE - 4096] {
                disk.write(&[9; 4096], GuestOffset(at)).unwrap();
            }
            disk.write_zeroes(GuestOffset(GIB + 5 * MIB), MIB).unwrap();
            disk.close().unwrap();
            let disk = Disk::new(vec![layer(&file, false)]).unwrap();
            let Layer::Qcow2(image) = &disk.layers()[0] else { panic!("not qcow2") };
            let (mut at, mut runs) = (0, 0);
            while at < SIZE {
                let extent = image.extent(GuestOffset(at), u64::MAX).unwrap();
                // A run of no more than a cluster is looked up in the table itself.
                for place in (at..at + extent.len).step_by(index(MIB)).chain([at + extent.len - 1]) {
                    let single = image.extent(GuestOffset(place), 1).unwrap();
                    let expected = match extent.source {
                        Source::Data(host) => Source::Data(host + (place - at)),
                        other => other,
                    };
                    assert_eq!(single.source, expected, "plain {plain}, at {place}");
                }
                (at, runs) = (at + extent.len, runs + 1);
            }
            assert_eq!(at, SIZE);
            assert!((9..40).contains(&runs), "{runs} runs");
        }
    }
}
