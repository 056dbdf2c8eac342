"""Makes a disk that holds OLD what NEW is, by writing what differs, 4 KiB by 4 KiB.

Usage: become.py OLD NEW DISK
"""
import sys

PIECE = 4096

with open(sys.argv[1], "rb") as old, open(sys.argv[2], "rb") as new, open(sys.argv[3], "r+b") as disk:
    at = 0
    while after := new.read(1 << 20):
        before = old.read(1 << 20)
        if before != after:
            for piece in range(0, len(after), PIECE):
                if before[piece:piece + PIECE] != after[piece:piece + PIECE]:
                    disk.seek(at + piece)
                    disk.write(after[piece:piece + PIECE])
        at += len(after)
