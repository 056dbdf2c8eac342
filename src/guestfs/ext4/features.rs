//! The features of a filesystem, by the names that mke2fs knows them under.

use crate::error::{Error, Result};
use std::fmt;

/// Which of the superblock's three words a feature is in.
#[derive(Clone, Copy)]
enum Word {
    Compat,
    Incompat,
    RoCompat,
}

macro_rules! features {
    ($($name:ident, $word:ident $bit:literal, $text:literal, $read:literal;)*) => {
        /// A feature of an ext2, ext3 or ext4 filesystem.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Feature {
            $(#[doc = concat!("`", $text, "`")] $name,)*
        }

        impl Feature {
            /// Every feature that has a name.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Where it is kept, its name, and whether filesystems that have it are read.
            fn facts(self) -> (Word, u32, &'static str, bool) {
                match self { $(Self::$name => (Word::$word, $bit, $text, $read),)* }
            }
        }
    };
}

features! {
    DirPrealloc, Compat 0x1, "dir_prealloc", true;
    ImagicInodes, Compat 0x2, "imagic_inodes", true;
    HasJournal, Compat 0x4, "has_journal", true;
    ExtAttr, Compat 0x8, "ext_attr", true;
    ResizeInode, Compat 0x10, "resize_inode", true;
    DirIndex, Compat 0x20, "dir_index", true;
    SparseSuper2, Compat 0x200, "sparse_super2", true;
    FastCommit, Compat 0x400, "fast_commit", true;
    StableInodes, Compat 0x800, "stable_inodes", true;
    OrphanFile, Compat 0x1000, "orphan_file", true;
    Compression, Incompat 0x1, "compression", false;
    Filetype, Incompat 0x2, "filetype", true;
    NeedsRecovery, Incompat 0x4, "needs_recovery", true;
    JournalDev, Incompat 0x8, "journal_dev", false;
    MetaBg, Incompat 0x10, "meta_bg", true;
    Extents, Incompat 0x40, "extent", true;
    SixtyFourBit, Incompat 0x80, "64bit", true;
    Mmp, Incompat 0x100, "mmp", true;
    FlexBg, Incompat 0x200, "flex_bg", true;
    EaInode, Incompat 0x400, "ea_inode", true;
    Dirdata, Incompat 0x1000, "dirdata", false;
    MetadataCsumSeed, Incompat 0x2000, "metadata_csum_seed", true;
    LargeDir, Incompat 0x4000, "large_dir", true;
    InlineData, Incompat 0x8000, "inline_data", true;
    Encrypt, Incompat 0x1_0000, "encrypt", false;
    Casefold, Incompat 0x2_0000, "casefold", false;
    SparseSuper, RoCompat 0x1, "sparse_super", true;
    LargeFile, RoCompat 0x2, "large_file", true;
    BtreeDir, RoCompat 0x4, "btree_dir", false;
    HugeFile, RoCompat 0x8, "huge_file", true;
    UninitBg, RoCompat 0x10, "uninit_bg", true;
    DirNlink, RoCompat 0x20, "dir_nlink", true;
    ExtraIsize, RoCompat 0x40, "extra_isize", true;
    HasSnapshot, RoCompat 0x80, "has_snapshot", false;
    Quota, RoCompat 0x100, "quota", true;
    Bigalloc, RoCompat 0x200, "bigalloc", true;
    MetadataCsum, RoCompat 0x400, "metadata_csum", true;
    Replica, RoCompat 0x800, "replica", false;
    ReadOnly, RoCompat 0x1000, "read-only", false;
    Project, RoCompat 0x2000, "project", true;
    SharedBlocks, RoCompat 0x4000, "shared_blocks", false;
    Verity, RoCompat 0x8000, "verity", false;
    OrphanPresent, RoCompat 0x1_0000, "orphan_present", true;
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.facts().2)
    }
}

/// The features that a filesystem has, as its superblock has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Features {
    /// What may be ignored by who does not know it.
    pub compat: u32,
    /// What must be known to read.
    pub incompat: u32,
    /// What must be known to write.
    pub ro_compat: u32,
}

impl Features {
    /// Whether the filesystem has `feature`.
    #[must_use]
    pub fn has(&self, feature: Feature) -> bool {
        let (word, bit, ..) = feature.facts();
        self.word(word) & bit != 0
    }

    /// The features that have a name, in the order of [`Feature::ALL`].
    pub fn named(&self) -> impl Iterator<Item = Feature> + '_ {
        Feature::ALL.iter().copied().filter(|feature| self.has(*feature))
    }

    /// Whether group descriptors have checksums: only then do their "not initialised" flags mean anything.
    #[must_use]
    pub fn has_group_checksums(&self) -> bool {
        self.has(Feature::UninitBg) || self.has(Feature::MetadataCsum)
    }

    fn word(&self, word: Word) -> u32 {
        match word {
            Word::Compat => self.compat,
            Word::Incompat => self.incompat,
            Word::RoCompat => self.ro_compat,
        }
    }

    /// Refuses what is not read here. An unknown `ro_compat` feature is refused as well: what is read is to be written
    /// again, or cut by the free blocks that were found.
    pub(super) fn check(&self) -> Result<()> {
        if let Some(feature) = self.named().find(|feature| !feature.facts().3) {
            return Err(Error::unsupported(format!(
                "the filesystem has the feature {feature}, which is not read here; leave this filesystem as it is"
            )));
        }
        let mut known = [0, 0];
        for feature in Feature::ALL {
            match feature.facts() {
                (Word::Compat, ..) => (),
                (Word::Incompat, bit, ..) => known[0] |= bit,
                (Word::RoCompat, bit, ..) => known[1] |= bit,
            }
        }
        let (incompat, ro_compat) = (self.incompat & !known[0], self.ro_compat & !known[1]);
        if incompat | ro_compat != 0 {
            return Err(Error::unsupported(format!(
                "the filesystem has features that are not known here (incompat {incompat:#x}, ro_compat {ro_compat:#x}); leave it as it is"
            )));
        }
        Ok(())
    }
}
