"""Makes all of a fresh clone's disk its own, without writing it: each cluster gets a place in a hole of the file.

    mapped.py CLONE.qcow2      extended L2, 16-bit refcounts, all L2 tables in the L1 table, as `cowshed clone` makes it
"""
import os
import struct
import sys
from array import array

COPIED = 1 << 63
WHOLE = (1 << 32) - 1


def big_endian(words):
    if sys.byteorder == "little":
        words.byteswap()
    return words.tobytes()


def table(file, at, entries):
    words = array("Q", os.pread(file, 8 * entries, at))
    if sys.byteorder == "little":
        words.byteswap()
    return words


def main(path):
    file = os.open(path, os.O_RDWR)
    head = os.pread(file, 104, 0)
    bits, size = struct.unpack_from(">IQ", head, 20)
    entries, l1_at, counts_at, counts_clusters = struct.unpack_from(">IQQI", head, 36)
    cluster, per_table, per_block = 1 << bits, (1 << bits) // 16, (1 << bits) // 2
    start = -(-os.fstat(file).st_size // cluster) * cluster
    counts = table(file, counts_at, counts_clusters * cluster // 8)
    clusters = size // cluster
    # The refcount blocks that are missing come first, then the disk.
    end, missing = start // cluster + clusters, 0
    while missing < sum(not counts[n] for n in range(-(-(end + missing) // per_block))):
        missing += 1
    place, end = start, end + missing
    for number in range(-(-end // per_block)):
        if not counts[number]:
            counts[number] = place
            place += cluster
        first, last = max(start // cluster, number * per_block), min(end, (number + 1) * per_block)
        ones = array("H", [1]) * (last - first)
        ones.byteswap()
        os.pwrite(file, ones.tobytes(), counts[number] + first % per_block * 2)
    os.pwrite(file, big_endian(counts), counts_at)
    for number, entry in enumerate(table(file, l1_at, entries)):
        count = min(per_table, clusters - number * per_table)
        words = array("Q", [WHOLE]) * (2 * count)
        words[0::2] = array("Q", range(place | COPIED, (place | COPIED) + count * cluster, cluster))
        os.pwrite(file, big_endian(words), entry & ~COPIED)
        place += count * cluster
    os.ftruncate(file, place)
    os.fsync(file)


main(sys.argv[1])
