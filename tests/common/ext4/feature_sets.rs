//! Filesystems of many makes.

/// One way to make a filesystem.
#[derive(Clone, Copy, Debug)]
pub struct FeatureSet {
    pub name: &'static str,
    pub arguments: &'static [&'static str],
    /// In MiB.
    pub size: u64,
    pub block: usize,
}

const fn set(name: &'static str, block: usize, size: u64, arguments: &'static [&'static str]) -> FeatureSet {
    FeatureSet { name, arguments, size, block }
}

/// Those that the kernel mounts.
pub const MOUNTED: &[FeatureSet] = &[
    set("ext2, 1 KiB", 1024, 64, &["-t", "ext2", "-b", "1024"]),
    set("ext2, 4 KiB, small inodes", 4096, 64, &["-t", "ext2", "-b", "4096", "-I", "128"]),
    set("ext2 without file types", 1024, 64, &["-t", "ext2", "-b", "1024", "-O", "^filetype,^dir_index"]),
    set("ext3, 4 KiB", 4096, 64, &["-t", "ext3", "-b", "4096"]),
    set("ext3, 1 KiB", 1024, 64, &["-t", "ext3", "-b", "1024"]),
    set("ext4, 4 KiB", 4096, 64, &["-t", "ext4", "-b", "4096"]),
    set("ext4, 2 KiB", 2048, 64, &["-t", "ext4", "-b", "2048"]),
    set("ext4, 1 KiB", 1024, 64, &["-t", "ext4", "-b", "1024"]),
    set("ext4, small inodes", 4096, 64, &["-t", "ext4", "-b", "4096", "-I", "128"]),
    set("ext4, large inodes", 4096, 64, &["-t", "ext4", "-b", "4096", "-I", "1024"]),
    set(
        "no journal, no extents",
        4096,
        64,
        &["-t", "ext4", "-b", "4096", "-O", "^has_journal,^extent,^64bit"],
    ),
    set("no checksums", 4096, 64, &["-t", "ext4", "-b", "4096", "-O", "^metadata_csum"]),
    set("group checksums", 4096, 300, &["-t", "ext4", "-b", "4096", "-O", "^metadata_csum,uninit_bg"]),
    set(
        "group checksums, 32 bits",
        1024,
        64,
        &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,uninit_bg,^64bit"],
    ),
    set("checksums, 32 bits", 1024, 64, &["-t", "ext4", "-b", "1024", "-O", "^64bit"]),
    set("meta_bg", 1024, 96, &["-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode"]),
    set("no flex_bg", 1024, 96, &["-t", "ext4", "-b", "1024", "-O", "^flex_bg"]),
    set("small flex groups", 1024, 96, &["-t", "ext4", "-b", "1024", "-G", "2"]),
    set("sparse_super2", 1024, 96, &["-t", "ext4", "-b", "1024", "-O", "sparse_super2,^resize_inode"]),
    set("no sparse_super", 1024, 64, &["-t", "ext4", "-b", "1024", "-O", "^sparse_super,^resize_inode"]),
    set("bigalloc", 4096, 256, &["-t", "ext4", "-b", "4096", "-C", "16384", "-O", "bigalloc"]),
    set("bigalloc, 1 KiB", 1024, 128, &["-t", "ext4", "-b", "1024", "-C", "8192", "-O", "bigalloc"]),
    set("inline_data", 4096, 64, &["-t", "ext4", "-b", "4096", "-O", "inline_data"]),
    set(
        "inline_data, large inodes",
        4096,
        64,
        &["-t", "ext4", "-b", "4096", "-I", "1024", "-O", "inline_data"],
    ),
    set("inline_data, 1 KiB", 1024, 64, &["-t", "ext4", "-b", "1024", "-O", "inline_data,^metadata_csum"]),
    set("ea_inode", 4096, 64, &["-t", "ext4", "-b", "4096", "-O", "ea_inode"]),
    set("ea_inode, no checksums", 1024, 64, &["-t", "ext4", "-b", "1024", "-O", "ea_inode,^metadata_csum"]),
    set("large_dir", 1024, 64, &["-t", "ext4", "-b", "1024", "-O", "large_dir"]),
    set("metadata_csum_seed", 4096, 64, &["-t", "ext4", "-b", "4096", "-O", "metadata_csum_seed"]),
    set("orphan_file", 4096, 64, &["-t", "ext4", "-b", "4096", "-O", "orphan_file"]),
    set("fast_commit", 4096, 64, &["-t", "ext4", "-b", "4096", "-O", "fast_commit"]),
    set("stable_inodes", 4096, 64, &["-t", "ext4", "-b", "4096", "-O", "stable_inodes"]),
    set("mmp", 4096, 64, &["-t", "ext4", "-b", "4096", "-O", "mmp"]),
];

/// Those that not every kernel mounts: blocks larger than pages, quota.
pub const BY_MKE2FS: &[FeatureSet] = &[
    set(
        "quota, project",
        4096,
        64,
        &["-t", "ext4", "-b", "4096", "-O", "quota,project", "-E", "quotatype=usrquota:grpquota:prjquota"],
    ),
    set("ext4, 8 KiB", 8192, 96, &["-t", "ext4", "-b", "8192"]),
    set("ext2, 16 KiB", 16384, 96, &["-t", "ext2", "-b", "16384"]),
    set("ext4, 32 KiB", 32768, 192, &["-t", "ext4", "-b", "32768"]),
    set("ext4, 64 KiB", 65536, 256, &["-t", "ext4", "-b", "65536"]),
    set("ext4, 64 KiB, no checksums", 65536, 256, &["-t", "ext4", "-b", "65536", "-O", "^metadata_csum"]),
];
