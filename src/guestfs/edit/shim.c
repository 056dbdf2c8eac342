/*
 * libext2fs behind a few flat calls: its structures are known to the C compiler alone.
 *
 * Everything here runs in the confined child.
 */

#include "shim.h"

#include <errno.h>
#include <et/com_err.h>
#include <ext2fs/ext2fs.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static struct cs_io the_io;

/* Blocks of the filesystem */

static struct struct_io_manager manager;

static errcode_t io_open(const char *name, int flags, io_channel *out)
{
	io_channel channel = calloc(1, sizeof(*channel));

	(void)flags;
	if (!channel)
		return EXT2_ET_NO_MEMORY;
	channel->magic = EXT2_ET_MAGIC_IO_CHANNEL;
	channel->manager = &manager;
	channel->name = strdup(name);
	channel->block_size = 1024;
	channel->refcount = 1;
	if (!channel->name) {
		free(channel);
		return EXT2_ET_NO_MEMORY;
	}
	*out = channel;
	return 0;
}

static errcode_t io_close(io_channel channel)
{
	if (--channel->refcount > 0)
		return 0;
	free(channel->name);
	free(channel);
	return 0;
}

static errcode_t io_set_blksize(io_channel channel, int size)
{
	channel->block_size = size;
	return 0;
}

/* A negative count is a number of bytes. */
static int range(io_channel channel, unsigned long long block, int count, uint64_t *at, uint64_t *len)
{
	uint64_t size = (uint64_t)channel->block_size;

	*len = count < 0 ? (uint64_t)-(int64_t)count : (uint64_t)count * size;
	return __builtin_mul_overflow((uint64_t)block, size, at);
}

static errcode_t io_read64(io_channel channel, unsigned long long block, int count, void *buf)
{
	uint64_t at, len;

	if (range(channel, block, count, &at, &len))
		return EXT2_ET_BAD_BLOCK_NUM;
	return the_io.read(the_io.host, at, len, buf);
}

static errcode_t io_write64(io_channel channel, unsigned long long block, int count, const void *buf)
{
	uint64_t at, len;

	if (range(channel, block, count, &at, &len))
		return EXT2_ET_BAD_BLOCK_NUM;
	return the_io.write(the_io.host, at, len, buf);
}

static errcode_t io_read(io_channel channel, unsigned long block, int count, void *buf)
{
	return io_read64(channel, block, count, buf);
}

static errcode_t io_write(io_channel channel, unsigned long block, int count, const void *buf)
{
	return io_write64(channel, block, count, buf);
}

static errcode_t io_write_byte(io_channel channel, unsigned long at, int len, const void *buf)
{
	(void)channel;
	return len < 0 ? EXT2_ET_INVALID_ARGUMENT : the_io.write(the_io.host, at, (uint64_t)len, buf);
}

/* The cache behind the channel is written back by its owner. */
static errcode_t io_flush(io_channel channel)
{
	(void)channel;
	return 0;
}

static struct struct_io_manager manager = {
	.magic = EXT2_ET_MAGIC_IO_MANAGER,
	.name = "cowshed",
	.open = io_open,
	.close = io_close,
	.set_blksize = io_set_blksize,
	.read_blk = io_read,
	.write_blk = io_write,
	.flush = io_flush,
	.write_byte = io_write_byte,
	.read_blk64 = io_read64,
	.write_blk64 = io_write64,
};

/* The filesystem */

/* What libext2fs would print: the child has nowhere to print to. */
static void silent(const char *who, errcode_t code, const char *format, va_list arguments)
{
	(void)who;
	(void)code;
	(void)format;
	(void)arguments;
}

long cs_open(const struct cs_io *io, int writable, cs_fs *out)
{
	int flags = EXT2_FLAG_64BITS | EXT2_FLAG_SKIP_MMP | (writable ? EXT2_FLAG_RW : 0);
	errcode_t code;

	initialize_ext2_error_table();
	set_com_err_hook(silent);
	the_io = *io;
	code = ext2fs_open2("disk", NULL, flags, 0, 0, &manager, out);
	if (code || !writable)
		return code;
	/* The same edits make the same filesystem, whenever that is. */
	(*out)->now = (*out)->super->s_wtime ? (*out)->super->s_wtime : 1;
	return ext2fs_read_bitmaps(*out);
}

/* The backups of the superblock stay as they are, as with the kernel. */
long cs_flush(cs_fs fs)
{
	fs->flags |= EXT2_FLAG_MASTER_SB_ONLY;
	return ext2fs_flush(fs);
}

const char *cs_message(long code)
{
	return error_message(code);
}

int cs_class(long code)
{
	switch (code) {
	case EXT2_ET_BLOCK_ALLOC_FAIL:
	case EXT2_ET_INODE_ALLOC_FAIL:
	case EXT2_ET_DIR_NO_SPACE:
	case EXT2_ET_EA_NO_SPACE:
	case EXT2_ET_FILE_TOO_BIG:
		return 1;
	case EXT2_ET_UNSUPP_FEATURE:
	case EXT2_ET_RO_UNSUPP_FEATURE:
	case EXT2_ET_DIRHASH_UNSUPP:
		return 2;
	case EXT2_ET_FILE_NOT_FOUND:
	case EXT2_ET_EA_KEY_NOT_FOUND:
		return 3;
	case EXT2_ET_FILE_EXISTS:
	case EXT2_ET_DIR_EXISTS:
		return 4;
	default:
		return 0;
	}
}

void cs_info(cs_fs fs, struct cs_info *out)
{
	memset(out, 0, sizeof(*out));
	out->blocks = ext2fs_blocks_count(fs->super);
	out->block_size = fs->blocksize;
	out->inodes = fs->super->s_inodes_count;
	out->first_inode = EXT2_FIRST_INODE(fs->super);
	out->inode_size = EXT2_INODE_SIZE(fs->super);
	out->compat = fs->super->s_feature_compat;
	out->incompat = fs->super->s_feature_incompat;
	out->ro_compat = fs->super->s_feature_ro_compat;
	out->state = fs->super->s_state;
	out->last_orphan = fs->super->s_last_orphan;
	out->orphan_file = fs->super->s_orphan_file_inum;
	out->journal = fs->super->s_journal_inum;
}

/* Inodes */

int cs_in_use(cs_fs fs, uint32_t ino)
{
	return ino != 0 && ino <= fs->super->s_inodes_count && ext2fs_test_inode_bitmap2(fs->inode_map, ino);
}

/* Room for an inode of any size; inode is too small for those of 128 bytes to be read as large ones. */
static errcode_t read_full(cs_fs fs, uint32_t ino, struct ext2_inode_large **out)
{
	size_t size = EXT2_INODE_SIZE(fs->super);
	struct ext2_inode_large *inode;
	errcode_t code;

	inode = calloc(1, size < sizeof(*inode) ? sizeof(*inode) : size);
	if (!inode)
		return EXT2_ET_NO_MEMORY;
	code = ext2fs_read_inode_full(fs, ino, (struct ext2_inode *)inode, (int)size);
	if (code) {
		free(inode);
		return code;
	}
	*out = inode;
	return 0;
}

static int has(cs_fs fs, const struct ext2_inode_large *inode, size_t end)
{
	return EXT2_INODE_SIZE(fs->super) > EXT2_GOOD_OLD_INODE_SIZE &&
	       EXT2_GOOD_OLD_INODE_SIZE + (size_t)inode->i_extra_isize >= end &&
	       EXT2_INODE_SIZE(fs->super) >= end;
}

#define HAS(fs, inode, field) \
	has(fs, inode, offsetof(struct ext2_inode_large, field) + sizeof((inode)->field))

/* The upper 30 bits of the second word count nanoseconds, the lower 2 extend the seconds. */
static void get_time(struct cs_time *out, uint32_t low, uint32_t extra, int has_extra)
{
	out->seconds = (int32_t)low;
	out->present = 1;
	if (has_extra) {
		out->seconds += (int64_t)(extra & 3) << 32;
		out->nanoseconds = extra >> 2;
	}
}

static uint32_t extra_of(const struct cs_time *time)
{
	uint64_t epoch = (uint64_t)(time->seconds - (int32_t)(uint32_t)time->seconds) >> 32;

	return (uint32_t)(epoch & 3) | time->nanoseconds << 2;
}

long cs_inode_get(cs_fs fs, uint32_t ino, struct cs_inode *out)
{
	struct ext2_inode_large *inode;
	errcode_t code = read_full(fs, ino, &inode);

	if (code)
		return code;
	memset(out, 0, sizeof(*out));
	out->mode = inode->i_mode;
	out->links = inode->i_links_count;
	out->uid = inode_uid(*inode);
	out->gid = inode_gid(*inode);
	out->flags = inode->i_flags;
	out->generation = inode->i_generation;
	out->size = EXT2_I_SIZE((struct ext2_inode *)inode);
	get_time(&out->atime, inode->i_atime, inode->i_atime_extra, HAS(fs, inode, i_atime_extra));
	get_time(&out->ctime, inode->i_ctime, inode->i_ctime_extra, HAS(fs, inode, i_ctime_extra));
	get_time(&out->mtime, inode->i_mtime, inode->i_mtime_extra, HAS(fs, inode, i_mtime_extra));
	if (HAS(fs, inode, i_crtime))
		get_time(&out->crtime, inode->i_crtime, inode->i_crtime_extra, HAS(fs, inode, i_crtime_extra));
	if (HAS(fs, inode, i_projid)) {
		out->has_project = 1;
		out->project = inode->i_projid;
	}
	free(inode);
	return 0;
}

/* As the kernel does it: a time that cannot be kept becomes the nearest one that can. */
static struct cs_time nearest(const struct cs_time *time, int has_extra)
{
	struct cs_time near = *time;
	int64_t most = has_extra ? (1LL << 34) - (1LL << 31) - 1 : INT32_MAX;

	if (near.seconds < INT32_MIN || near.seconds > most) {
		near.seconds = near.seconds < INT32_MIN ? INT32_MIN : most;
		near.nanoseconds = 0;
	}
	return near;
}

#define PUT_TIME(fs, inode, name, time) do { \
		int has_extra = HAS(fs, inode, i_##name##_extra); \
		struct cs_time near = nearest(time, has_extra); \
		(inode)->i_##name = (uint32_t)near.seconds; \
		if (has_extra) \
			(inode)->i_##name##_extra = extra_of(&near); \
	} while (0)

/* The size is left alone: cs_truncate sets it. */
long cs_inode_put(cs_fs fs, uint32_t ino, const struct cs_inode *in)
{
	struct ext2_inode_large *inode;
	errcode_t code = read_full(fs, ino, &inode);

	if (code)
		return code;
	inode->i_mode = (uint16_t)in->mode;
	inode->i_links_count = (uint16_t)in->links;
	inode->i_uid = (uint16_t)in->uid;
	inode->i_gid = (uint16_t)in->gid;
	ext2fs_set_i_uid_high(*inode, in->uid >> 16);
	ext2fs_set_i_gid_high(*inode, in->gid >> 16);
	inode->i_flags = in->flags;
	inode->i_generation = in->generation;
	PUT_TIME(fs, inode, atime, &in->atime);
	PUT_TIME(fs, inode, ctime, &in->ctime);
	PUT_TIME(fs, inode, mtime, &in->mtime);
	if (HAS(fs, inode, i_crtime))
		PUT_TIME(fs, inode, crtime, &in->crtime);
	if (HAS(fs, inode, i_projid))
		inode->i_projid = in->project;
	code = ext2fs_write_inode_full(fs, ino, (struct ext2_inode *)inode, EXT2_INODE_SIZE(fs->super));
	free(inode);
	return code;
}

/* Makes an inode that maps no block one that can. */
static errcode_t init_map(cs_fs fs, uint32_t ino, struct ext2_inode *inode)
{
	ext2_extent_handle_t handle;
	errcode_t code;

	memset(inode->i_block, 0, sizeof(inode->i_block));
	inode->i_flags &= ~(EXT4_INLINE_DATA_FL | EXT4_EXTENTS_FL);
	if (!ext2fs_has_feature_extents(fs->super))
		return 0;
	inode->i_flags |= EXT4_EXTENTS_FL;
	code = ext2fs_extent_open2(fs, ino, inode, &handle);
	if (!code)
		ext2fs_extent_free(handle);
	return code;
}

static void set_device(struct ext2_inode *inode, uint32_t major, uint32_t minor)
{
	if (major < 256 && minor < 256)
		inode->i_block[0] = major << 8 | minor;
	else
		inode->i_block[1] = (minor & 0xff) | (major & 0xfff) << 8 | (minor & ~0xffu) << 12;
}

/* A folder's checksums hold its generation, so its block is written once more. */
static errcode_t make_folder(cs_fs fs, uint32_t ino, uint32_t generation)
{
	struct ext2_inode inode;
	/* Its own parent for now: no other folder's count of links changes. */
	errcode_t code = ext2fs_mkdir(fs, ino, ino, NULL);

	if (!code)
		code = ext2fs_read_inode(fs, ino, &inode);
	if (code)
		return code;
	inode.i_generation = generation;
	code = ext2fs_write_inode(fs, ino, &inode);
	if (code)
		return code;
	fs->flags |= EXT2_FLAG_IGNORE_CSUM_ERRORS;
	code = cs_set_parent(fs, ino, ino);
	fs->flags &= ~EXT2_FLAG_IGNORE_CSUM_ERRORS;
	return code;
}

long cs_make(cs_fs fs, uint32_t mode, const uint32_t device[2], uint32_t generation, uint32_t *out)
{
	struct ext2_inode inode;
	ext2_ino_t ino;
	errcode_t code = ext2fs_new_inode(fs, EXT2_ROOT_INO, (int)mode, NULL, &ino);

	if (code)
		return code;
	*out = ino;
	if (LINUX_S_ISDIR(mode))
		return make_folder(fs, ino, generation);
	memset(&inode, 0, sizeof(inode));
	inode.i_mode = (uint16_t)mode;
	inode.i_generation = generation;
	if (LINUX_S_ISREG(mode))
		code = init_map(fs, ino, &inode);
	else if (LINUX_S_ISCHR(mode) || LINUX_S_ISBLK(mode))
		set_device(&inode, device[0], device[1]);
	if (!code)
		code = ext2fs_write_new_inode(fs, ino, &inode);
	if (!code)
		ext2fs_inode_alloc_stats2(fs, ino, +1, 0);
	return code;
}

/* Gives every block of the content back. */
static errcode_t drop_content(cs_fs fs, uint32_t ino, struct ext2_inode *inode)
{
	errcode_t code;

	if (inode->i_flags & EXT4_INLINE_DATA_FL || ext2fs_inode_has_valid_blocks2(fs, inode)) {
		code = ext2fs_punch(fs, ino, inode, NULL, 0, ~0ULL);
		if (!code)
			code = ext2fs_read_inode(fs, ino, inode);
		if (code)
			return code;
	}
	return 0;
}

long cs_set_target(cs_fs fs, uint32_t ino, const char *target, uint32_t len)
{
	struct ext2_inode inode;
	errcode_t code;
	blk64_t block;
	char *buf;

	if (len == 0 || len >= fs->blocksize)
		return EXT2_ET_INVALID_ARGUMENT;
	code = ext2fs_read_inode(fs, ino, &inode);
	if (!code)
		code = drop_content(fs, ino, &inode);
	if (code)
		return code;
	memset(inode.i_block, 0, sizeof(inode.i_block));
	inode.i_flags &= ~(EXT4_INLINE_DATA_FL | EXT4_EXTENTS_FL);
	code = ext2fs_inode_size_set(fs, &inode, len);
	if (code)
		return code;
	if (len < sizeof(inode.i_block)) {
		memcpy(inode.i_block, target, len);
		return ext2fs_write_inode(fs, ino, &inode);
	}
	code = init_map(fs, ino, &inode);
	if (!code)
		code = ext2fs_write_inode(fs, ino, &inode);
	if (!code)
		code = ext2fs_bmap2(fs, ino, &inode, NULL, BMAP_ALLOC, 0, NULL, &block);
	if (code)
		return code;
	buf = calloc(1, fs->blocksize);
	if (!buf)
		return EXT2_ET_NO_MEMORY;
	memcpy(buf, target, len);
	code = io_channel_write_blk64(fs->io, block, 1, buf);
	free(buf);
	return code;
}

long cs_truncate(cs_fs fs, uint32_t ino, uint64_t size)
{
	struct ext2_inode inode;
	errcode_t code = ext2fs_read_inode(fs, ino, &inode);
	int extents = inode.i_flags & (EXT4_EXTENTS_FL | EXT4_INLINE_DATA_FL);

	if (!code)
		code = drop_content(fs, ino, &inode);
	/* Only an inode that had a map of blocks of the older kind keeps it. */
	if (!code && extents)
		code = init_map(fs, ino, &inode);
	if (!code)
		code = ext2fs_inode_size_set(fs, &inode, (ext2_off64_t)size);
	if (!code)
		code = ext2fs_write_inode(fs, ino, &inode);
	return code;
}

long cs_map(cs_fs fs, uint32_t ino, uint64_t first, uint32_t count, uint64_t *blocks, uint8_t *fresh)
{
	struct ext2_inode inode;
	errcode_t code = ext2fs_read_inode(fs, ino, &inode);
	int flags;

	for (uint32_t i = 0; !code && i < count; i++) {
		blk64_t block = 0;

		code = ext2fs_bmap2(fs, ino, &inode, NULL, 0, first + i, &flags, &block);
		fresh[i] = block == 0 || flags & BMAP_RET_UNINIT;
		if (!code && block == 0)
			code = ext2fs_bmap2(fs, ino, &inode, NULL, BMAP_ALLOC, first + i, NULL, &block);
		else if (!code && fresh[i])
			code = ext2fs_bmap2(fs, ino, &inode, NULL, BMAP_SET, first + i, NULL, &block);
		blocks[i] = block;
	}
	return code;
}

/* Clusters of the values from entry on that have inodes of their own; buf ends at end. */
static uint64_t own_clusters(cs_fs fs, const char *entry, const char *end)
{
	uint64_t size = EXT2FS_C2B(fs, 1) * fs->blocksize, sum = 0;
	const struct ext2_ext_attr_entry *of;

	for (; end - entry >= (ptrdiff_t)sizeof(*of); entry += EXT2_EXT_ATTR_LEN(of->e_name_len)) {
		of = (const struct ext2_ext_attr_entry *)entry;
		if (EXT2_EXT_IS_LAST_ENTRY(of))
			break;
		if (of->e_value_inum)
			sum += (of->e_value_size + size - 1) / size;
	}
	return sum;
}

/* An inode counts the values of its attributes among its blocks, wherever they are; libext2fs 1.47.0 does not. */
static errcode_t value_clusters(cs_fs fs, uint32_t ino, uint64_t *sum)
{
	struct ext2_inode_large *inode;
	size_t size = EXT2_INODE_SIZE(fs->super), first;
	errcode_t code = read_full(fs, ino, &inode);
	blk64_t block;
	uint32_t magic;
	char *buf;

	*sum = 0;
	if (code)
		return code;
	first = EXT2_GOOD_OLD_INODE_SIZE + inode->i_extra_isize;
	if (size > EXT2_GOOD_OLD_INODE_SIZE && first + sizeof(magic) < size) {
		memcpy(&magic, (char *)inode + first, sizeof(magic));
		if (magic == EXT2_EXT_ATTR_MAGIC)
			*sum += own_clusters(fs, (char *)inode + first + sizeof(magic), (char *)inode + size);
	}
	block = ext2fs_file_acl_block(fs, (struct ext2_inode *)inode);
	free(inode);
	if (!block)
		return 0;
	buf = malloc(fs->blocksize);
	if (!buf)
		return EXT2_ET_NO_MEMORY;
	code = ext2fs_read_ext_attr3(fs, block, buf, ino);
	if (!code)
		*sum += own_clusters(fs, buf + sizeof(struct ext2_ext_attr_header), buf + fs->blocksize);
	free(buf);
	return code;
}

static errcode_t count_values(cs_fs fs, uint32_t ino, uint64_t before)
{
	struct ext2_inode inode;
	uint64_t after;
	errcode_t code = value_clusters(fs, ino, &after);

	if (code || after == before)
		return code;
	code = ext2fs_read_inode(fs, ino, &inode);
	if (!code && after > before)
		code = ext2fs_iblk_add_blocks(fs, &inode, after - before);
	else if (!code)
		code = ext2fs_iblk_sub_blocks(fs, &inode, before - after);
	return code ? code : ext2fs_write_inode(fs, ino, &inode);
}

static long xattr(cs_fs fs, uint32_t ino, const char *name, const void *value, uint64_t len, int remove)
{
	struct ext2_xattr_handle *handle;
	void *old = NULL;
	size_t old_len;
	uint64_t before;
	errcode_t code = value_clusters(fs, ino, &before);

	if (!code)
		code = ext2fs_xattrs_open(fs, ino, &handle);
	if (code)
		return code;
	code = ext2fs_xattrs_read(handle);
	/* To libext2fs it is no error to remove what is not there. */
	if (!code && remove) {
		code = ext2fs_xattr_get(handle, name, &old, &old_len);
		if (!code)
			ext2fs_free_mem(&old);
	}
	if (!code)
		code = remove ? ext2fs_xattr_remove(handle, name) : ext2fs_xattr_set(handle, name, value, len);
	ext2fs_xattrs_close(&handle);
	return code ? code : count_values(fs, ino, before);
}

long cs_xattr_set(cs_fs fs, uint32_t ino, const char *name, const void *value, uint64_t len)
{
	return xattr(fs, ino, name, value, len, 0);
}

long cs_xattr_remove(cs_fs fs, uint32_t ino, const char *name)
{
	return xattr(fs, ino, name, NULL, 0, 1);
}

static int first_xattr(char *name, char *value, size_t len, void *data)
{
	(void)value;
	(void)len;
	if (!strcmp(name, "system.data"))
		return 0;
	*(char **)data = strdup(name);
	return XATTR_ABORT;
}

/* One by one: an attribute may have an inode of its own, which goes with it. */
static errcode_t drop_xattrs(cs_fs fs, uint32_t ino)
{
	struct ext2_xattr_handle *handle;
	errcode_t code = ext2fs_xattrs_open(fs, ino, &handle);
	char *name;

	if (code)
		return code;
	code = ext2fs_xattrs_read(handle);
	while (!code) {
		name = NULL;
		code = ext2fs_xattrs_iterate(handle, first_xattr, &name);
		if (code || !name)
			break;
		code = ext2fs_xattr_remove(handle, name);
		free(name);
	}
	ext2fs_xattrs_close(&handle);
	return code;
}

long cs_free(cs_fs fs, uint32_t ino)
{
	struct ext2_inode inode;
	errcode_t code = 0;
	int folder;

	if (ext2fs_has_feature_ea_inode(fs->super))
		code = drop_xattrs(fs, ino);
	if (!code)
		code = ext2fs_free_ext_attr(fs, ino, NULL);
	if (!code)
		code = ext2fs_read_inode(fs, ino, &inode);
	if (code)
		return code;
	folder = LINUX_S_ISDIR(inode.i_mode);
	code = drop_content(fs, ino, &inode);
	if (code)
		return code;
	inode.i_links_count = 0;
	inode.i_dtime = (uint32_t)fs->now;
	code = ext2fs_inode_size_set(fs, &inode, 0);
	if (!code)
		code = ext2fs_write_inode(fs, ino, &inode);
	if (!code)
		ext2fs_inode_alloc_stats2(fs, ino, -1, folder);
	return code;
}

/* Folders */

/*
 * A folder inside its inode gets a block before it changes: libext2fs 1.47.0 calls one that it filled itself corrupt.
 */
static errcode_t prepare(cs_fs fs, uint32_t folder, struct ext2_inode *inode)
{
	errcode_t code = ext2fs_read_inode(fs, folder, inode);

	if (!code && inode->i_flags & EXT4_INLINE_DATA_FL)
		code = ext2fs_expand_dir(fs, folder);
	return code;
}

/* Reads one block of a folder; a hole is no block of it. */
static errcode_t folder_block(cs_fs fs, uint32_t folder, struct ext2_inode *inode, uint64_t number,
			      blk64_t *place, char *buf)
{
	errcode_t code = ext2fs_bmap2(fs, folder, inode, NULL, 0, number, NULL, place);

	if (!code && *place == 0)
		code = EXT2_ET_DIR_NO_SPACE;
	return code ? code : ext2fs_read_dir_block4(fs, *place, buf, 0, folder);
}

/* The entry at byte at of a block, and its length; NULL at the end, and where the block makes no sense. */
static struct ext2_dir_entry *entry_at(cs_fs fs, char *buf, unsigned int at, unsigned int *len)
{
	unsigned int end = fs->blocksize;
	struct ext2_dir_entry *entry = (struct ext2_dir_entry *)(buf + at);

	if (ext2fs_has_feature_metadata_csum(fs->super))
		end -= sizeof(struct ext2_dir_entry_tail);
	if (at + EXT2_DIR_ENTRY_HEADER_LEN > end || ext2fs_get_rec_len(fs, entry, len))
		return NULL;
	if (*len < EXT2_DIR_ENTRY_HEADER_LEN || *len % 4 || at + *len > fs->blocksize)
		return NULL;
	if (EXT2_DIR_ENTRY_HEADER_LEN + (unsigned int)ext2fs_dirent_name_len(entry) > *len)
		return NULL;
	return entry;
}

static int is_called(const struct ext2_dir_entry *entry, const char *name)
{
	size_t len = strlen(name);

	return entry->inode && (size_t)ext2fs_dirent_name_len(entry) == len && !memcmp(entry->name, name, len);
}

/* Adds an entry to a block whose buffer is given, if there is room. */
static errcode_t add_entry(cs_fs fs, char *buf, const char *name, uint32_t ino, int type)
{
	unsigned int need = EXT2_DIR_REC_LEN(strlen(name)), len, used;
	struct ext2_dir_entry *entry;
	errcode_t code = 0;

	for (unsigned int at = 0; (entry = entry_at(fs, buf, at, &len)); at += len) {
		used = entry->inode ? EXT2_DIR_REC_LEN(ext2fs_dirent_name_len(entry)) : 0;
		if (used > len || len - used < need)
			continue;
		if (used) {
			code = ext2fs_set_rec_len(fs, used, entry);
			entry = (struct ext2_dir_entry *)(buf + at + used);
		}
		entry->inode = ino;
		ext2fs_dirent_set_name_len(entry, (int)strlen(name));
		ext2fs_dirent_set_file_type(entry, ext2fs_has_feature_filetype(fs->super) ? type : 0);
		memcpy(entry->name, name, strlen(name));
		return code ? code : ext2fs_set_rec_len(fs, len - used, entry);
	}
	return EXT2_ET_DIR_NO_SPACE;
}

static errcode_t link_in(cs_fs fs, uint32_t folder, struct ext2_inode *inode, uint64_t number,
			 const char *name, uint32_t ino, int type)
{
	char *buf = malloc(fs->blocksize);
	blk64_t place;
	errcode_t code;

	if (!buf)
		return EXT2_ET_NO_MEMORY;
	code = folder_block(fs, folder, inode, number, &place, buf);
	if (!code)
		code = add_entry(fs, buf, name, ino, type);
	if (!code)
		code = ext2fs_write_dir_block4(fs, place, buf, 0, folder);
	free(buf);
	return code;
}

static uint64_t blocks_of(cs_fs fs, struct ext2_inode *inode)
{
	return EXT2_I_SIZE(inode) / fs->blocksize;
}

/*
 * from is the block of the last name that was added: blocks before it are full, or were once.
 * ext2fs_link would look through all of them for each name.
 */
long cs_link(cs_fs fs, uint32_t folder, const char *name, uint32_t ino, int type, uint64_t *from)
{
	struct ext2_inode inode;
	errcode_t code = prepare(fs, folder, &inode);

	if (code)
		return code;
	if (inode.i_flags & EXT2_INDEX_FL)
		return ext2fs_link(fs, folder, name, ino, type);
	for (; *from < blocks_of(fs, &inode); ++*from) {
		code = link_in(fs, folder, &inode, *from, name, ino, type);
		if (code != EXT2_ET_DIR_NO_SPACE)
			return code;
	}
	code = ext2fs_expand_dir(fs, folder);
	if (!code)
		code = ext2fs_read_inode(fs, folder, &inode);
	if (code)
		return code;
	*from = blocks_of(fs, &inode) - 1;
	return link_in(fs, folder, &inode, *from, name, ino, type);
}

static errcode_t unlink_in(cs_fs fs, uint32_t folder, struct ext2_inode *inode, uint64_t number, const char *name)
{
	struct ext2_dir_entry *entry, *before = NULL;
	errcode_t code;
	blk64_t place;
	unsigned int len, before_len = 0;
	char *buf = malloc(fs->blocksize);

	if (!buf)
		return EXT2_ET_NO_MEMORY;
	code = folder_block(fs, folder, inode, number, &place, buf);
	for (unsigned int at = 0; !code; at += len) {
		entry = entry_at(fs, buf, at, &len);
		if (!entry) {
			code = EXT2_ET_FILE_NOT_FOUND;
		} else if (is_called(entry, name)) {
			if (before)
				code = ext2fs_set_rec_len(fs, before_len + len, before);
			else
				entry->inode = 0;
			if (!code)
				code = ext2fs_write_dir_block4(fs, place, buf, 0, folder);
			break;
		}
		before = entry;
		before_len = len;
	}
	free(buf);
	return code;
}

/* hint is the block where the name was; an index may have moved it. */
long cs_unlink(cs_fs fs, uint32_t folder, const char *name, uint32_t ino, uint64_t hint)
{
	struct ext2_inode inode;
	errcode_t code = prepare(fs, folder, &inode);

	if (code)
		return code;
	if (hint < blocks_of(fs, &inode) && !unlink_in(fs, folder, &inode, hint, name))
		return 0;
	return ext2fs_unlink(fs, folder, name, ino, 0);
}

/* Calls emit for every name but . and .. */
long cs_names(cs_fs fs, uint32_t folder, void *host,
	      void (*emit)(void *host, const char *name, uint32_t len, uint32_t ino, uint64_t block))
{
	struct ext2_inode inode;
	struct ext2_dir_entry *entry;
	unsigned int len;
	blk64_t place;
	char *buf;
	errcode_t code = prepare(fs, folder, &inode);

	if (!code)
		code = ext2fs_read_inode(fs, folder, &inode);
	if (code)
		return code;
	if (blocks_of(fs, &inode) > ext2fs_blocks_count(fs->super))
		return EXT2_ET_DIR_CORRUPTED;
	buf = malloc(fs->blocksize);
	if (!buf)
		return EXT2_ET_NO_MEMORY;
	for (uint64_t number = 0; !code && number < blocks_of(fs, &inode); number++) {
		code = folder_block(fs, folder, &inode, number, &place, buf);
		for (unsigned int at = 0; !code && (entry = entry_at(fs, buf, at, &len)); at += len)
			if (entry->inode && !is_called(entry, ".") && !is_called(entry, ".."))
				emit(host, entry->name, (uint32_t)ext2fs_dirent_name_len(entry), entry->inode, number);
		if (code == EXT2_ET_DIR_NO_SPACE)
			code = 0;
	}
	free(buf);
	return code;
}

struct parent {
	uint32_t to;
	int done;
};

static int set_parent(ext2_ino_t dir, int entry, struct ext2_dir_entry *dirent, int offset, int size,
		      char *buf, void *data)
{
	struct parent *parent = data;

	(void)dir;
	(void)offset;
	(void)size;
	(void)buf;
	if (entry != DIRENT_DOT_DOT_FILE)
		return 0;
	dirent->inode = parent->to;
	parent->done = 1;
	return DIRENT_CHANGED | DIRENT_ABORT;
}

long cs_set_parent(cs_fs fs, uint32_t folder, uint32_t to)
{
	struct parent parent = { to, 0 };
	struct ext2_inode inode;
	errcode_t code = prepare(fs, folder, &inode);

	if (code)
		return code;
	code = ext2fs_dir_iterate2(fs, folder, DIRENT_FLAG_INCLUDE_EMPTY, NULL, set_parent, &parent);

	return code ? code : parent.done ? 0 : EXT2_ET_DIR_CORRUPTED;
}

static int other_name(ext2_ino_t dir, int entry, struct ext2_dir_entry *dirent, int offset, int size,
		      char *buf, void *data)
{
	(void)dir;
	(void)offset;
	(void)size;
	(void)buf;
	if (entry != DIRENT_OTHER_FILE || !dirent->inode)
		return 0;
	*(int *)data = 0;
	return DIRENT_ABORT;
}

long cs_is_empty(cs_fs fs, uint32_t folder, int *empty)
{
	*empty = 1;
	return ext2fs_dir_iterate2(fs, folder, 0, NULL, other_name, empty);
}

/* What e2fsck reads */

struct scan {
	void *host;
	long (*emit)(void *host, uint64_t block, uint64_t count);
	long code;
	int all, first;
};

static int scan_block(ext2_filsys fs, blk64_t *block, e2_blkcnt_t count, blk64_t ref, int offset, void *data)
{
	struct scan *scan = data;

	(void)fs;
	(void)ref;
	(void)offset;
	if (count >= 0 && !scan->all && !(scan->first && count == 0))
		return 0;
	scan->code = scan->emit(scan->host, *block, 1);
	return scan->code ? BLOCK_ABORT : 0;
}

static long scan_groups(cs_fs fs, struct scan *scan)
{
	long code = scan->emit(scan->host, 0, fs->super->s_first_data_block + 1);

	if (!code && ext2fs_has_feature_mmp(fs->super))
		code = scan->emit(scan->host, fs->super->s_mmp_block, 1);
	for (dgrp_t group = 0; !code && group < fs->group_desc_count; group++) {
		blk64_t super, old_desc, new_desc;
		blk_t used;
		uint64_t table = fs->inode_blocks_per_group;

		ext2fs_super_and_bgd_loc2(fs, group, &super, &old_desc, &new_desc, &used);
		if (super)
			code = scan->emit(scan->host, super, 1);
		if (!code && old_desc)
			code = scan->emit(scan->host, old_desc, fs->desc_blocks);
		if (!code && new_desc)
			code = scan->emit(scan->host, new_desc, 1);
		if (!code)
			code = scan->emit(scan->host, ext2fs_block_bitmap_loc(fs, group), 1);
		if (!code)
			code = scan->emit(scan->host, ext2fs_inode_bitmap_loc(fs, group), 1);
		if (ext2fs_has_group_desc_csum(fs))
			table -= ext2fs_bg_itable_unused(fs, group) / EXT2_INODES_PER_BLOCK(fs->super);
		if (!code && table <= fs->inode_blocks_per_group)
			code = scan->emit(scan->host, ext2fs_inode_table_loc(fs, group), table);
	}
	return code;
}

/* Content that e2fsck reads: folders, targets, values of attributes, the list of orphans, usage of quotas. */
static int reads_content(cs_fs fs, uint32_t ino, const struct ext2_inode *inode)
{
	return LINUX_S_ISDIR(inode->i_mode) || LINUX_S_ISLNK(inode->i_mode) ||
	       inode->i_flags & EXT4_EA_INODE_FL || ino == fs->super->s_orphan_file_inum ||
	       ino == fs->super->s_usr_quota_inum || ino == fs->super->s_grp_quota_inum ||
	       ino == fs->super->s_prj_quota_inum || ino == EXT2_BAD_INO;
}

static long scan_inode(cs_fs fs, uint32_t ino, struct ext2_inode *inode, char *buf, struct scan *scan)
{
	errcode_t code;

	if (inode->i_links_count == 0 && ino >= EXT2_FIRST_INODE(fs->super))
		return 0;
	if (ext2fs_file_acl_block(fs, inode)) {
		code = scan->emit(scan->host, ext2fs_file_acl_block(fs, inode), 1);
		if (code)
			return code;
	}
	if (!ext2fs_inode_has_valid_blocks2(fs, inode))
		return 0;
	scan->all = reads_content(fs, ino, inode);
	scan->first = ino == fs->super->s_journal_inum;
	/* A damaged map of blocks is e2fsck's to find. */
	(void)ext2fs_block_iterate3(fs, ino, BLOCK_FLAG_READ_ONLY, buf, scan_block, scan);
	return scan->code;
}

long cs_scan(cs_fs fs, void *host, long (*emit)(void *host, uint64_t block, uint64_t count))
{
	struct scan scan = { .host = host, .emit = emit };
	struct ext2_inode inode;
	ext2_inode_scan inodes;
	ext2_ino_t ino;
	char *buf;
	long code = scan_groups(fs, &scan);

	if (code)
		return code;
	buf = calloc(3, fs->blocksize);
	if (!buf)
		return EXT2_ET_NO_MEMORY;
	code = ext2fs_open_inode_scan(fs, 0, &inodes);
	if (code) {
		free(buf);
		return code;
	}
	for (;;) {
		code = ext2fs_get_next_inode(inodes, &ino, &inode);
		if (code == EXT2_ET_BAD_BLOCK_IN_INODE_TABLE || code == EXT2_ET_INODE_CSUM_INVALID)
			continue;
		if (code || ino == 0)
			break;
		code = scan_inode(fs, ino, &inode, buf, &scan);
		if (code)
			break;
	}
	ext2fs_close_inode_scan(inodes);
	free(buf);
	return code;
}

uint64_t cs_sizes(void)
{
	return sizeof(struct cs_io) | sizeof(struct cs_info) << 16 | (uint64_t)sizeof(struct cs_inode) << 32 |
	       (uint64_t)sizeof(struct cs_time) << 48;
}
