//! A chain of layers as one block device.
//!
//! The top layer takes writes. What a layer says nothing of shows the next one; past a layer's end zeros are read,
//! however long the layers under it are.

mod raw;
mod silent;
mod walk;

use crate::error::{Error, Result};
use crate::qcow2::{Below, Compacted, Extent, GoOn, Image, Packed, Piece, Put, Reader, Source};
use crate::units::{GuestOffset, HostOffset, MIB, length};
use silent::Silent;
use std::fs::File;
use std::ops::Range;

pub use raw::RawLayer;
pub use walk::{Runs, Walk};

/// Bytes of the L1 tables of all layers together; one of the largest size alone is allowed.
const MOST_L1: u64 = 32 * MIB;

/// One layer of a chain.
#[derive(Debug)]
pub enum Layer {
    /// A raw file.
    Raw(RawLayer),
    /// A qcow2 image.
    Qcow2(Box<Image>),
}

/// Where the bytes of a run of a disk come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskExtent {
    /// Length in bytes, at least 1.
    pub len: u64,
    /// Whether a layer stores bytes for it; otherwise it reads as zeros.
    pub data: bool,
    /// The layer that decides, 0 for the top; `None` when no layer says anything.
    pub depth: Option<usize>,
    /// Place in that layer's file, when its bytes are stored as they are.
    pub host: Option<HostOffset>,
    /// Whether it is compressed.
    pub compressed: bool,
}

/// A chain as one block device, shared by many threads.
#[derive(Debug)]
pub struct Disk {
    layers: Vec<Layer>,
    /// Of the layers under the top one.
    silent: Option<Silent>,
}

/// The layers under another one.
struct Chain<'a>(&'a [Layer]);

impl Below for Chain<'_> {
    fn read_to(&self, reader: &mut dyn Reader, at: GuestOffset, len: u64) -> Result<()> {
        let inside = self.size().saturating_sub(at.0).min(len);
        if let Some((layer, rest)) = self.0.split_first()
            && inside > 0
        {
            layer.read_to(reader, at, inside, &Chain(rest))?;
        }
        if inside < len { reader.take(Piece::Zeros(len - inside)) } else { Ok(()) }
    }

    fn size(&self) -> u64 {
        self.0.first().map_or(0, Layer::size)
    }
}

/// The layers under the top one of a disk.
struct Under<'a> {
    chain: Chain<'a>,
    silent: Option<&'a Silent>,
}

impl Below for Under<'_> {
    fn read_to(&self, reader: &mut dyn Reader, mut at: GuestOffset, mut len: u64) -> Result<()> {
        let Some(silent) = self.silent else { return self.chain.read_to(reader, at, len) };
        while len > 0 && at.0 < self.size() {
            let (first, run) = silent.begin(self.chain.0, at, len);
            Chain(&self.chain.0[first..]).read_to(reader, at, run)?;
            (at, len) = (at + run, len - run);
        }
        if len > 0 { reader.take(Piece::Zeros(len)) } else { Ok(()) }
    }

    fn size(&self) -> u64 {
        self.chain.size()
    }
}

impl Layer {
    /// A layer that is a qcow2 image.
    #[must_use]
    pub fn qcow2(image: Image) -> Self {
        Self::Qcow2(Box::new(image))
    }

    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self {
            Self::Raw(raw) => raw.size(),
            Self::Qcow2(image) => image.virtual_size(),
        }
    }

    fn is_writable(&self) -> bool {
        match self {
            Self::Raw(raw) => raw.is_writable(),
            Self::Qcow2(image) => image.is_writable(),
        }
    }

    /// The file of the host that holds it, to share blocks with; `None` where there is none.
    #[must_use]
    pub fn host_file(&self) -> Option<&File> {
        match self {
            Self::Raw(raw) => raw.host_file(),
            Self::Qcow2(image) => image.host_file(),
        }
    }

    fn read_to(&self, reader: &mut dyn Reader, at: GuestOffset, len: u64, below: &dyn Below) -> Result<()> {
        match self {
            Self::Raw(raw) => raw.read_to(reader, at, len),
            Self::Qcow2(image) => image.read_to(reader, at, len, below),
        }
    }

    /// Length and source of the run that starts at `at`, which must lie inside the layer.
    fn extent(&self, at: GuestOffset, limit: u64) -> Result<(u64, Source)> {
        match self {
            Self::Raw(raw) => raw.extent(at),
            Self::Qcow2(image) => {
                let extent = image.extent(at, limit)?;
                Ok((extent.len, extent.source))
            }
        }
    }
}

impl AsRef<Disk> for Disk {
    fn as_ref(&self) -> &Disk {
        self
    }
}

fn raw_top() -> Error {
    Error::invalid("the disk is a raw file, which has no space of its own to give back; punch holes into it")
}

fn images(layers: &[Layer]) -> impl Iterator<Item = &Image> {
    layers.iter().filter_map(|layer| match layer {
        Layer::Qcow2(image) => Some(&**image),
        Layer::Raw(_) => None,
    })
}

/// Refuses a chain in the making whose tables take more memory than any sensible one's: a hostile header claims 32 MiB.
pub(crate) fn check_memory(layers: &[Layer]) -> Result<()> {
    let bytes: u64 = images(layers).map(Image::l1_bytes).sum();
    if bytes > MOST_L1 {
        return Err(Error::corrupt(format!(
            "the L1 tables of the chain have {bytes} bytes, more than {MOST_L1}"
        )));
    }
    Ok(())
}

impl Disk {
    /// A disk over `layers`, the top first.
    ///
    /// # Errors
    /// `Invalid` when there is no layer.
    pub fn new(mut layers: Vec<Layer>) -> Result<Self> {
        if layers.is_empty() {
            return Err(Error::invalid("a disk has at least one layer"));
        }
        // What is known of several lower layers takes as much memory as one image.
        let shares = images(&layers).count() + usize::from(layers.len() > 2);
        let mut share = 0;
        for layer in &mut layers {
            if let Layer::Qcow2(image) = layer {
                share = image.share_memory(shares);
            }
        }
        let silent = Silent::new(&layers[1..], share);
        Ok(Self { layers, silent })
    }

    /// The layers, top first.
    #[must_use]
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.layers[0].size()
    }

    fn below(&self) -> Under<'_> {
        Under { chain: Chain(&self.layers[1..]), silent: self.silent.as_ref() }
    }

    fn check_range(&self, at: GuestOffset, len: u64) -> Result<()> {
        match at.0.checked_add(len) {
            Some(end) if end <= self.size() => Ok(()),
            _ => Err(Error::invalid(format!(
                "{len} bytes at {at} reach past the disk's {} bytes",
                self.size()
            ))),
        }
    }

    /// Reads; the range must lie inside the disk.
    ///
    /// # Errors
    /// As [`Image::read`].
    pub fn read(&self, mut buf: &mut [u8], at: GuestOffset) -> Result<()> {
        let len = length(buf.len());
        self.read_to(&mut buf, at, len)
    }

    /// Gives `reader` the `len` bytes at `at`, which must lie inside the disk. Writers to the range wait meanwhile.
    ///
    /// # Errors
    /// As [`Image::read`]; the reader's.
    pub fn read_to(&self, reader: &mut dyn Reader, at: GuestOffset, len: u64) -> Result<()> {
        self.check_range(at, len)?;
        self.layers[0].read_to(reader, at, len, &self.below())
    }

    /// Reads what the disk would show without its top layer; the range must lie inside the disk.
    ///
    /// # Errors
    /// As [`Image::read`].
    pub fn read_below(&self, mut buf: &mut [u8], at: GuestOffset) -> Result<()> {
        let len = length(buf.len());
        self.check_range(at, len)?;
        self.below().read_to(&mut buf, at, len)
    }

    /// Writes into the top layer; the range must lie inside the disk.
    ///
    /// # Errors
    /// As [`Image::write`].
    pub fn write(&self, data: &[u8], at: GuestOffset) -> Result<()> {
        self.check_range(at, length(data.len()))?;
        match &self.layers[0] {
            Layer::Raw(raw) => raw.write(data, at),
            Layer::Qcow2(image) => image.write(data, at, &self.below()),
        }
    }

    /// Writes the first part of a range that has a place of its own in the top layer, by `put`, and returns its length. See
    /// [`Image::write_owned`].
    ///
    /// # Errors
    /// As [`Image::write_owned`]; `Invalid` when the top layer is a raw file.
    pub fn write_owned(&self, at: GuestOffset, len: u64, put: Put<'_>) -> Result<u64> {
        self.top()?.write_owned(at, len, put)
    }

    /// Makes a range read as zeros; it must lie inside the disk.
    ///
    /// # Errors
    /// As [`Image::write`].
    pub fn write_zeroes(&self, at: GuestOffset, len: u64) -> Result<()> {
        self.check_range(at, len)?;
        match &self.layers[0] {
            Layer::Raw(raw) => raw.write_zeroes(at, len),
            Layer::Qcow2(image) => image.write_zeroes(at, len, &self.below()),
        }
    }

    /// Tells that a range is not needed: its space comes back with the next flush, and it reads as zeros.
    ///
    /// # Errors
    /// As [`Image::write`].
    pub fn discard(&self, at: GuestOffset, len: u64) -> Result<()> {
        self.check_range(at, len)?;
        match &self.layers[0] {
            Layer::Raw(raw) => raw.write_zeroes(at, len),
            Layer::Qcow2(image) => image.discard(at, len, &self.below()),
        }
    }

    /// Makes the whole subclusters inside of `ranges` show what is below the top layer: for who knows that the bytes of that layer are
    /// worth nothing. See [`Image::drop_to_below`].
    ///
    /// # Errors
    /// As [`Image::write`]; `Invalid` when the top layer is a raw file, which covers everything.
    pub fn drop_to_below(&self, ranges: impl IntoIterator<Item = Range<u64>>) -> Result<u64> {
        self.top()?.drop_to_below(ranges)
    }

    /// How many bytes of the top layer's file [`Disk::drop_to_below`] would let go of. Nothing is changed.
    ///
    /// # Errors
    /// As [`Disk::drop_to_below`].
    pub fn droppable(&self, ranges: impl IntoIterator<Item = Range<u64>>) -> Result<u64> {
        self.top()?.droppable(ranges)
    }

    /// The run of the top layer that starts at `at`, which must lie inside the disk: what that layer says, whatever is below.
    ///
    /// # Errors
    /// As [`Image::extent`]; `Invalid` when the top layer is a raw file.
    pub fn own_extent(&self, at: GuestOffset) -> Result<Extent> {
        self.top()?.extent(at, u64::MAX)
    }

    /// Makes the top layer's file as short as what it holds. See [`Image::compact`].
    ///
    /// # Errors
    /// As [`Image::compact`]; `Invalid` when the top layer is a raw file.
    pub fn compact(&mut self, go_on: GoOn<'_>) -> Result<Compacted> {
        match &mut self.layers[0] {
            Layer::Qcow2(image) => image.compact(go_on),
            Layer::Raw(_) => Err(raw_top()),
        }
    }

    /// Bytes of a cluster of the top layer.
    ///
    /// # Errors
    /// `Invalid` when the top layer is a raw file.
    pub fn cluster_size(&self) -> Result<u64> {
        Ok(self.top()?.cluster_size())
    }

    /// Packs the clusters of the top layer that it has whole. See [`Image::pack`].
    ///
    /// # Errors
    /// As [`Image::pack`]; `Invalid` when the top layer is a raw file.
    pub fn pack(&mut self, go_on: &mut dyn FnMut(&Packed) -> bool) -> Result<Packed> {
        match &mut self.layers[0] {
            Layer::Qcow2(image) => image.pack(go_on),
            Layer::Raw(_) => Err(raw_top()),
        }
    }

    /// Calls `each` for what [`Disk::pack`] would try to pack of a range. See [`Image::each_full`].
    ///
    /// # Errors
    /// As [`Image::each_full`]; `Invalid` when the top layer is a raw file.
    pub fn each_full(&self, range: Range<u64>, each: impl FnMut(GuestOffset, u64)) -> Result<()> {
        self.top()?.each_full(range, each)
    }

    /// What packing the clusters at these places would save. See [`Image::would_save`].
    ///
    /// # Errors
    /// As [`Image::would_save`]; `Invalid` when the top layer is a raw file.
    pub fn would_save(&self, places: &[GuestOffset]) -> Result<u64> {
        self.top()?.would_save(places)
    }

    /// The top layer.
    fn top(&self) -> Result<&Image> {
        match &self.layers[0] {
            Layer::Qcow2(image) => Ok(image),
            Layer::Raw(_) => Err(raw_top()),
        }
    }

    /// Makes every write that returned before durable.
    ///
    /// # Errors
    /// As [`Image::flush`].
    pub fn flush(&self) -> Result<()> {
        match &self.layers[0] {
            Layer::Raw(raw) => raw.flush(),
            Layer::Qcow2(image) => image.flush(),
        }
    }

    /// Flushes and gives reserved clusters back. The disk stays usable.
    ///
    /// # Errors
    /// As [`Image::close`].
    pub fn close(&self) -> Result<()> {
        match &self.layers[0] {
            Layer::Raw(raw) => raw.flush(),
            Layer::Qcow2(image) => image.close(),
        }
    }

    /// How many of its bytes each layer stores, the top first; zeros that a layer tells of are none.
    ///
    /// # Errors
    /// As [`Disk::extent`].
    pub fn stored_by_layer(&self) -> Result<Vec<u64>> {
        let mut bytes = vec![0; self.layers.len()];
        for run in self.runs(0..self.size()) {
            let (range, extent) = run?;
            if let Some(stored) = extent.depth.filter(|_| extent.data).and_then(|depth| bytes.get_mut(depth))
            {
                *stored += range.end - range.start;
            }
        }
        Ok(bytes)
    }

    /// The run that starts at `at`, which must lie inside the disk.
    ///
    /// # Errors
    /// As [`Image::extent`].
    pub fn extent(&self, at: GuestOffset) -> Result<DiskExtent> {
        self.decided(at, |_, layer, len| layer.extent(at, len))
    }

    /// The run that starts at `at`; `look` tells what a layer says from there on, for at most so many bytes.
    fn decided(
        &self,
        at: GuestOffset,
        mut look: impl FnMut(usize, &Layer, u64) -> Result<(u64, Source)>,
    ) -> Result<DiskExtent> {
        self.check_range(at, 1)?;
        let mut len = self.size() - at.0;
        for (depth, layer) in self.layers.iter().enumerate() {
            if at.0 >= layer.size() {
                return Ok(DiskExtent { len, data: false, depth: None, host: None, compressed: false });
            }
            len = len.min(layer.size() - at.0);
            let (extent, source) = look(depth, layer, len)?;
            len = len.min(extent);
            let host = if let Source::Data(host) = source { Some(host) } else { None };
            let compressed = source == Source::Compressed;
            if source != Source::Below {
                return Ok(DiskExtent {
                    len,
                    data: host.is_some() || compressed,
                    depth: Some(depth),
                    host,
                    compressed,
                });
            }
        }
        Ok(DiskExtent { len, data: false, depth: None, host: None, compressed: false })
    }
}
