/* What Rust sees of libext2fs. Every structure here has its twin in ffi.rs; a test compares their sizes. */

#ifndef COWSHED_SHIM_H
#define COWSHED_SHIM_H

#include <stdint.h>

typedef struct struct_ext2_filsys *cs_fs;

/* Where blocks come from and go to; both return 0 or an error number. */
struct cs_io {
	void *host;
	long (*read)(void *host, uint64_t at, uint64_t len, void *buf);
	long (*write)(void *host, uint64_t at, uint64_t len, const void *buf);
};

/* What the superblock says. */
struct cs_info {
	uint64_t blocks;
	uint32_t block_size, inodes, first_inode, inode_size;
	uint32_t compat, incompat, ro_compat;
	uint32_t state, last_orphan, orphan_file, journal;
};

struct cs_time {
	int64_t seconds;
	uint32_t nanoseconds, present;
};

/* An inode without its map of blocks. */
struct cs_inode {
	uint64_t size;
	struct cs_time atime, ctime, mtime, crtime;
	uint32_t mode, links, uid, gid, flags, generation, project, has_project;
};

long cs_open(const struct cs_io *io, int writable, cs_fs *out);
long cs_flush(cs_fs fs);
const char *cs_message(long code);
/* What an error number of libext2fs is about: 0 damage, 1 no space, 2 unsupported, 3 not found, 4 exists. */
int cs_class(long code);
void cs_info(cs_fs fs, struct cs_info *out);

int cs_in_use(cs_fs fs, uint32_t ino);
long cs_inode_get(cs_fs fs, uint32_t ino, struct cs_inode *out);
long cs_inode_put(cs_fs fs, uint32_t ino, const struct cs_inode *in);
/* device: its major and minor number */
long cs_make(cs_fs fs, uint32_t mode, const uint32_t device[2], uint32_t generation, uint32_t *out);
long cs_set_target(cs_fs fs, uint32_t ino, const char *target, uint32_t len);
long cs_truncate(cs_fs fs, uint32_t ino, uint64_t size);
long cs_map(cs_fs fs, uint32_t ino, uint64_t first, uint32_t count, uint64_t *blocks, uint8_t *fresh);
long cs_free(cs_fs fs, uint32_t ino);

long cs_names(cs_fs fs, uint32_t folder, void *host,
	      void (*emit)(void *host, const char *name, uint32_t len, uint32_t ino, uint64_t block));
long cs_link(cs_fs fs, uint32_t folder, const char *name, uint32_t ino, int type, uint64_t *from);
long cs_unlink(cs_fs fs, uint32_t folder, const char *name, uint32_t ino, uint64_t hint);
long cs_set_parent(cs_fs fs, uint32_t folder, uint32_t parent);
long cs_is_empty(cs_fs fs, uint32_t folder, int *empty);

long cs_xattr_set(cs_fs fs, uint32_t ino, const char *name, const void *value, uint64_t len);
long cs_xattr_remove(cs_fs fs, uint32_t ino, const char *name);

/* Calls emit for every block that e2fsck reads. */
long cs_scan(cs_fs fs, void *host, long (*emit)(void *host, uint64_t block, uint64_t count));

uint64_t cs_sizes(void);

#endif
