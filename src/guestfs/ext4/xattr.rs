//! Extended attributes: those in the inode, those in its block, and values that have an inode of their own.

use super::checksum::{crc32c, crc32c_around};
use super::features::Feature;
use super::inode::{FileKind, Inode, flags};
use super::units::{Block, Ino};
use super::xattr_parse::{Raw, Value, parse};
use super::{Ext4, damaged};
use crate::error::{Error, Result};
use crate::guestfs::partitions::{Bytes, u32_at};
use crate::units::{index, length};
use std::collections::BTreeMap;

const MAGIC: u32 = 0xea02_0000;
/// Bytes of a block before its list, and where its checksum is in them.
const HEADER: usize = 32;
const CHECKSUM: usize = 16;
/// Most bytes of values that one inode may have: more than any program writes, less than what a hostile block that
/// names one large value many times would make.
const MOST: u64 = 16 << 20;

/// Attributes by their whole names.
type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

impl<B: Bytes> Ext4<B> {
    /// The extended attributes of a file by their whole names (`user.x`, `security.capability`), with the values that
    /// `getxattr` gives: access control lists are in Linux's form, see [`super::acl_from_xattr`] for the one on disk.
    /// What inline data keep in an attribute is left out.
    ///
    /// # Errors
    /// `Corrupt` when they break the format or do not match their checksums, or have a name twice.
    pub fn xattrs(&self, inode: &Inode) -> Result<Xattrs> {
        let (mut found, mut left) = (Xattrs::new(), MOST);
        for entry in self.inside(inode)?.iter().filter(|entry| !entry.is_inline_data()) {
            self.add(inode, entry, true, &mut left, &mut found)?;
        }
        if inode.xattr_block.0 != 0 {
            let block = self.xattr_block(inode)?;
            let entries = parse(&block, HEADER, 0).ok_or_else(|| wrong(inode, "break their format"))?;
            for entry in &entries {
                self.add(inode, entry, false, &mut left, &mut found)?;
            }
        }
        Ok(found)
    }

    /// What of an inode's inline data stands in an attribute.
    pub(super) fn inline_rest(&self, inode: &Inode) -> Result<Vec<u8>> {
        let entries = self.inside(inode)?;
        let Some(entry) = entries.iter().find(|entry| entry.is_inline_data()) else {
            return Err(damaged(format_args!("{} has no attribute for its inline data", inode.ino)));
        };
        match entry.value {
            Value::Here { bytes, .. } => Ok(bytes.to_vec()),
            Value::Inode { .. } => Err(damaged(format_args!("{} has inline data elsewhere", inode.ino))),
        }
    }

    /// The entries in the inode itself.
    fn inside<'a>(&self, inode: &'a Inode) -> Result<Vec<Raw<'a>>> {
        if inode.tail.len() < 4 || u32_at(&inode.tail, 0) != MAGIC {
            return Ok(Vec::new());
        }
        parse(&inode.tail, 4, 4).ok_or_else(|| wrong(inode, "break their format"))
    }

    fn xattr_block(&self, inode: &Inode) -> Result<Vec<u8>> {
        let at = inode.xattr_block;
        let block = self.block(at)?;
        if u32_at(&block, 0) != MAGIC || u32_at(&block, 8) != 1 {
            return Err(wrong(inode, "are not where they should be"));
        }
        if self.has(Feature::MetadataCsum) {
            let seed = crc32c(self.superblock.checksum_seed, &at.0.to_le_bytes());
            if crc32c_around(seed, &block, CHECKSUM, 4) != u32_at(&block, CHECKSUM) {
                return Err(wrong(inode, "do not match their checksum"));
            }
        }
        Ok(block)
    }

    fn add(
        &self,
        inode: &Inode,
        entry: &Raw<'_>,
        inside: bool,
        left: &mut u64,
        to: &mut Xattrs,
    ) -> Result<()> {
        let name = entry.name().ok_or_else(|| {
            Error::unsupported(format!("{} has an attribute of a kind that is not known here", inode.ino))
        })?;
        let value = match entry.value {
            Value::Here { bytes, padded } if entry.hash_matches(padded, inside) => entry.shown(bytes)?,
            Value::Here { .. } => return Err(wrong(inode, "do not match their hashes")),
            Value::Inode { number, len } => {
                let value = self.value_inode(inode, Ino(number), len)?;
                let sum = crc32c(self.superblock.checksum_seed, &value);
                if !entry.hash_matches(&sum.to_le_bytes(), false) {
                    return Err(wrong(inode, "do not match their hashes"));
                }
                entry.shown(&value)?
            }
        };
        *left = left.checked_sub(length(value.len())).ok_or_else(|| wrong(inode, "are too many"))?;
        if to.insert(name, value).is_some() {
            return Err(wrong(inode, "have a name twice"));
        }
        Ok(())
    }

    /// A value of `len` bytes that has the inode `ino` of its own.
    fn value_inode(&self, owner: &Inode, ino: Ino, len: u64) -> Result<Vec<u8>> {
        if !self.has(Feature::EaInode) || ino.0 < self.superblock.first_inode.0 {
            return Err(wrong(owner, "have a value in an inode that cannot have one"));
        }
        let inode = self.inode(ino)?;
        let sound = inode.kind == FileKind::Regular
            && inode.has(flags::EA_INODE)
            && !inode.has(flags::INLINE_DATA)
            && inode.size == len;
        if !sound {
            return Err(wrong(owner, "have a value in an inode that is not made for one"));
        }
        let mut value = vec![0; index(len)];
        self.content(&inode)?.read(0, &mut value)?;
        Ok(value)
    }
}

fn wrong(inode: &Inode, what: &str) -> Error {
    let at =
        if inode.xattr_block == Block(0) { String::new() } else { format!(" (in {})", inode.xattr_block) };
    damaged(format_args!("the attributes of {}{at} {what}", inode.ino))
}
