"""Makes the raw disks of jobs.sh: half noise, half text; the same bytes without a hole, and in pieces as a filesystem leaves them.

    disks.py FULL.raw SPARSE.raw MIB
"""
import os
import random
import sys

KIB, MIB = 1 << 10, 1 << 20
# A disk has so many times the bytes that are in use.
ROOM = 6


def text(source):
    words = [source.randbytes(3).hex() for _ in range(500)]
    line = " ".join(source.choices(words, k=4 * KIB)).encode()
    return (line * (MIB // len(line) + 1))[:MIB]


def main(full, sparse, mib):
    source = random.Random(1)
    with open(full, "wb") as whole, open(sparse, "wb") as holes:
        at = 0
        for number in range(mib):
            piece = source.randbytes(MIB) if number % 2 else text(source)
            whole.write(piece)
            done = 0
            while done < MIB:
                step = min(4 * KIB << source.randrange(9), MIB - done)
                os.pwrite(holes.fileno(), piece[done:done + step], at)
                done += step
                if source.random() < 0.5:
                    at += 4 * KIB * source.randrange(1, 512)
                at += step
        holes.truncate(max(ROOM * mib * MIB, -(-at // MIB) * MIB))


main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
