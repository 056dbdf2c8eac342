#!/usr/bin/env python3
"""Judges a merge of three disks, file by file, with nothing of cowshed: the kernel mounts all four.

Usage, as root: unshare --mount merge-oracle.py OLD NEW CLONE RESULT EXPECTED SCRATCH

The disks are raw images whose partition 1 is ext4; EXPECTED is merge-case/expected; SCRATCH is a folder for the
mount points. Prints one JSON object:
  problems    what is not as it must be, in sentences; empty for a right merge
  conflicts   every [clash, path] that the three trees lead to; the merge must report exactly these
  own_bytes   bytes on disk of the files that the clone made or changed
  counts      how many files each side made, changed and deleted
"""

import fcntl
import fnmatch
import hashlib
import json
import os
import re
import stat
import subprocess
import sys
from collections import Counter

FS_IOC_GETFLAGS = 0x80086601
# How a file is laid out (extents, hashed folder, inline data, huge, verity of the directory) is not what it is.
LAYOUT_FLAGS = 0x80000 | 0x1000 | 0x10000000 | 0x40000
# Where text is merged line by line.
TEXT = ("/etc/", "/home/", "/root/")
INFO = "/var/lib/dpkg/info/"
SKIPPED = ("/proc", "/sys", "/dev", "/run")
# Databases that are merged by key; each has a check of its own below.
ACCOUNTS = {"/etc/passwd": 7, "/etc/group": 4, "/etc/shadow": 9, "/etc/gshadow": 4}
RANGES = ("/etc/subuid", "/etc/subgid")
STANZAS = {
    "/var/lib/dpkg/status": ("Package", "Architecture"),
    "/var/lib/apt/extended_states": ("Package", "Architecture"),
    "/var/cache/debconf/config.dat": ("Name",),
    "/var/cache/debconf/templates.dat": ("Name",),
    "/var/cache/debconf/passwords.dat": ("Name",),
}
LINES = ("/var/lib/dpkg/triggers/", "/var/lib/dpkg/diversions", "/var/lib/dpkg/statoverride")
ALTERNATIVES = ("/var/lib/dpkg/alternatives/", "/etc/alternatives/")
# Backups of databases: the clone's.
BACKUPS = ("/etc/passwd-", "/etc/group-", "/etc/shadow-", "/etc/gshadow-", "/etc/subuid-", "/etc/subgid-",
           "/var/lib/dpkg/*-old", "/var/cache/debconf/*-old")

problems = []


def problem(text):
    problems.append(text)


def run(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, **options)


# --- the four trees ----------------------------------------------------------------------------

def mount(disk, folder):
    os.makedirs(folder, exist_ok=True)
    table = json.loads(subprocess.check_output(["sfdisk", "--json", disk]))["partitiontable"]
    part = next(part for part in table["partitions"] if part.get("name") == "root")
    start, size = part["start"] * 512, part["size"] * 512
    options = f"loop,ro,noload,offset={start},sizelimit={size}"
    subprocess.check_call(["mount", "-t", "ext4", "-o", options, disk, folder])
    return folder


class Entry:
    """One name: what the inode says, and its content."""

    def __init__(self, path, info):
        self.kind = stat.S_IFMT(info.st_mode)
        self.ino, self.links, self.blocks, self.mtime = info.st_ino, info.st_nlink, info.st_blocks, info.st_mtime_ns
        self.facts = {"mode": stat.S_IMODE(info.st_mode), "uid": info.st_uid, "gid": info.st_gid}
        self.facts["device"] = info.st_rdev
        for name in os.listxattr(path, follow_symlinks=False):
            self.facts["xattr " + name] = os.getxattr(path, name, follow_symlinks=False)
        self.content = b""
        if self.kind == stat.S_IFLNK:
            self.content = os.readlink(os.fsencode(path))
        elif self.kind in (stat.S_IFREG, stat.S_IFDIR):
            self.read(path)

    def read(self, path):
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        flags = int.from_bytes(fcntl.ioctl(file, FS_IOC_GETFLAGS, bytes(8))[:4], "little")
        self.facts["flags"] = flags & ~LAYOUT_FLAGS
        if self.kind == stat.S_IFREG:
            with os.fdopen(file, "rb", closefd=False) as data:
                self.content = hashlib.file_digest(data, "sha256").digest()
        os.close(file)

    def is_folder(self):
        return self.kind == stat.S_IFDIR

    def same(self, other):
        """But for the times."""
        return (self.kind, self.facts, self.content) == (other.kind, other.facts, other.content)


class Tree(dict):
    """Path to entry; a moved path has its new name already."""

    def __init__(self, root, moves):
        super().__init__()
        self.root, self.back = root, {}
        for folder, folders, files in os.walk(root):
            inside = folder[len(root):]
            folders[:] = [name for name in folders if f"{inside}/{name}" not in SKIPPED]
            for name in folders + files:
                self.add(f"{inside}/{name}", moves)
        self.groups = {}
        for path, entry in self.items():
            if entry.links > 1 and not entry.is_folder():
                self.groups.setdefault(entry.ino, set()).add(path)

    def add(self, path, moves):
        real, entry = self.root + path, None
        for old, new in moves:
            if path == old or path.startswith(old + "/"):
                path = new + path[len(old):]
                break
        entry = Entry(real, os.lstat(real))
        self[path], self.back[path] = entry, real

    def bytes(self, path):
        if path not in self:
            return b""
        with open(self.back[path], "rb") as file:
            return file.read()

    def group_sets(self):
        return {frozenset(group) for group in self.groups.values()}


def three(old, base, clone):
    """(decided, value) of one thing that the two sides may have changed."""
    if base == clone or base == old:
        return True, clone
    return clone == old, base


# --- what is expected --------------------------------------------------------------------------

class Expected:
    def __init__(self, file):
        self.clashes, self.packages, self.moves, self.alternatives = [], {}, [], []
        self.globs = {"identity": [], "derived": [], "added": []}
        for line in open(file):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if words[0] == "clash":
                self.clashes.append(words[1:])
            elif words[0] == "package":
                self.packages[words[2]] = words[1]
            elif words[0] == "move":
                self.moves.append((words[1], words[2]))
            elif words[0] == "alternative":
                self.alternatives.append(words[1:])
            else:
                self.globs[words[0]].append(words[1])
        self.met = set()

    def is_in(self, word, path):
        return any(fnmatch.fnmatchcase(path, glob) for glob in self.globs[word])

    def side(self, clash, path):
        """Who wins a clash that must be known here."""
        for at, (kind, side, glob) in enumerate(self.clashes):
            if kind == clash and fnmatch.fnmatchcase(path, glob):
                self.met.add(at)
                return side
        problem(f"{path}: a clash, {clash}, that nobody expected")
        return "clone"


class Judge:
    def __init__(self, old, base, clone, result, expected):
        self.old, self.base, self.clone, self.result, self.expected = old, base, clone, result, expected
        self.conflicts = set()
        self.units = self.package_files()

    def of(self, side):
        return self.base if side == "base" else self.clone

    # Paths of packages that come from one side as a whole.
    def package_files(self):
        units = {}
        for package, side in self.expected.packages.items():
            conffiles = set()
            names = [name for tree in (self.old, self.base, self.clone) for name in tree
                     if name.startswith(INFO) and re.split("[.:]", name[len(INFO):])[0] == package]
            for name in names:
                units[name] = side
                for tree in (self.old, self.base, self.clone):
                    if name.endswith(".conffiles"):
                        conffiles.update(tree.bytes(name).decode().split("\n"))
                    if name.endswith(".list"):
                        for path in tree.bytes(name).decode().split("\n"):
                            path = re.sub(r"^/(bin|sbin|lib|lib64)/", r"/usr/\1/", path)
                            units.setdefault(path, side)
            for path in conffiles:
                units.pop(path, None)
        return units

    def clash(self, clash, path):
        self.conflicts.add((clash, path))
        return self.expected.side(clash, path)

    def judge(self):
        expected = {}
        for path in sorted(self.old.keys() | self.base.keys() | self.clone.keys()):
            entry = self.entry(path)
            if entry is not None:
                expected[path] = entry
        for path in list(expected):
            while (path := os.path.dirname(path)) not in expected and path != "/":
                entry = self.base.get(path) or self.clone.get(path)
                expected[path] = (entry.kind, entry.facts, {entry.content}, {entry.mtime}, {entry.blocks})
        for path in sorted(expected.keys() | self.result.keys()):
            self.compare(path, expected.get(path), self.result.get(path))
        self.hardlinks(expected)
        databases(self)
        for at, clash in enumerate(self.expected.clashes):
            if at not in self.expected.met:
                problem(f"the clash {' '.join(clash)} did not come up")

    @staticmethod
    def whole(entry):
        if entry is None:
            return None
        return entry.kind, entry.facts, {entry.content}, {entry.mtime}, {entry.blocks}

    def entry(self, path):
        """Kind, facts, contents, times and block counts that `path` may have in the result; None if it must be gone.
        No contents: a database, checked elsewhere."""
        old, base, clone = self.old.get(path), self.base.get(path), self.clone.get(path)
        folder = any(entry and entry.is_folder() for entry in (base, clone))
        if self.expected.is_in("identity", path):
            return self.whole(clone)
        if self.expected.is_in("derived", path) and all(map(self.changed, (old, old), (base, clone))):
            return None
        if not folder and path in self.units:
            return self.whole(self.of(self.units[path]).get(path))
        if any(fnmatch.fnmatchcase(path, glob) for glob in BACKUPS):
            return self.whole(clone)
        if is_database(path) and base and clone:
            return base.kind, self.facts(path, old, base, clone), None, {base.mtime, clone.mtime}, None
        if path.startswith(ALTERNATIVES) and self.changed(old, base) and self.changed(old, clone):
            return base.kind, base.facts, None, {base.mtime, clone.mtime}, None
        if clone is None and base is None:
            return None
        if old is None and clone is None:
            return self.whole(base) if self.lost_folder(path) else None
        if old is None and base is None:
            linked = [name for name in self.clone.groups.get(clone.ino, ()) if name in self.old]
            return self.entry(linked[0]) if linked else self.whole(clone)
        if base is None:
            return self.deleted(path, "deleted-in-base", old, clone)
        if clone is None:
            return self.deleted(path, "deleted-in-clone", old, base)
        return self.both(path, old, base, clone)

    @staticmethod
    def changed(old, new):
        return (old is None) != (new is None) or (old is not None and not old.same(new))

    def lost_folder(self, path):
        """Whether what the base added may be there: not in a folder that the clone deleted, if the clone wins."""
        folder = os.path.dirname(path)
        if folder == "/" or folder in self.clone:
            return True
        if folder not in self.old:
            return self.lost_folder(folder)
        return self.clash("folder", folder) == "base"

    def deleted(self, path, clash, old, stays):
        if stays.is_folder() or not self.changed(old, stays):
            return None
        stayed = "clone" if clash == "deleted-in-base" else "base"
        return self.whole(stays) if self.clash(clash, path) == stayed else None

    def facts(self, path, old, base, clone):
        facts = {}
        for name in base.facts.keys() | clone.facts.keys():
            decided, value = three(old and old.facts.get(name), base.facts.get(name), clone.facts.get(name))
            if not decided:
                value = self.of(self.clash("metadata", path))[path].facts.get(name)
            if value is not None:
                facts[name] = value
        return facts

    def both(self, path, old, base, clone):
        facts = self.facts(path, old, base, clone)
        decided, time = three(old and old.mtime, base.mtime, clone.mtime)
        times = {time} if decided else {base.mtime, clone.mtime}
        decided, content = three(old and old.content, base.content, clone.content)
        if not decided:
            content = self.merged(path, old)
        blocks = {entry.blocks for entry in (base, clone) if entry.content == content}
        return base.kind, facts, {content}, times, blocks or None

    def merged(self, path, old):
        if old and path.startswith(TEXT):
            files = [tree.back[path] for tree in (self.clone, self.old, self.base)]
            merged = subprocess.run(["diff3", "-m", *files], capture_output=True)
            if merged.returncode == 0:
                return hashlib.sha256(merged.stdout).digest()
        return self.of(self.clash("content" if old else "added", path))[path].content

    # --- the comparison ---

    def compare(self, path, expected, result):
        if expected is None:
            if not self.expected.is_in("added", path):
                problem(f"{path}: is there and should not be")
            return
        if result is None:
            problem(f"{path}: is missing")
            return
        kind, facts, contents, times, blocks = expected
        if result.kind != kind:
            problem(f"{path}: is of another kind, {result.kind:o} instead of {kind:o}")
        for name in sorted(facts.keys() | result.facts.keys()):
            if facts.get(name) != result.facts.get(name):
                problem(f"{path}: {name} is {result.facts.get(name)!r} instead of {facts.get(name)!r}")
        if contents is not None and result.content not in contents:
            problem(f"{path}: has another content")
        if contents is not None and result.mtime not in times:
            problem(f"{path}: its time is {result.mtime} instead of {sorted(times)}")
        # A hole must stay one; an extent block more or less is the filesystem's affair.
        if kind == stat.S_IFREG and blocks and min(abs(result.blocks - count) for count in blocks) > 16:
            problem(f"{path}: takes {result.blocks} sectors instead of {sorted(blocks)}")

    def hardlinks(self, expected):
        old, base, clone = (tree.group_sets() for tree in (self.old, self.base, self.clone))
        wanted = (old & base & clone) | (base - old) | (clone - old)
        # A side that only adds a name replaces the group, whichever names the other side still has.
        wanted = {frozenset(group & expected.keys()) for group in wanted}
        wanted = {group for group in wanted if len(group) > 1 and not any(group < other for other in wanted)}
        for group in self.result.group_sets() ^ wanted:
            there = "should be" if group in wanted else "should not be"
            problem(f"{', '.join(sorted(group))}: {there} names of one file")


# --- databases ---------------------------------------------------------------------------------

def is_database(path):
    return path in ACCOUNTS or path in RANGES or path in STANZAS or path.startswith(LINES)


def databases(judge):
    for path, fields in ACCOUNTS.items():
        accounts(judge, path, fields)
    for path in RANGES:
        lines(judge, path)
    for path, keys in STANZAS.items():
        stanzas(judge, path, keys)
    for path in sorted(judge.result):
        if path.startswith(LINES):
            lines(judge, path)


def in_all(judge, path, parse):
    return [parse(tree.bytes(path).decode()) for tree in (judge.old, judge.base, judge.clone, judge.result)]


def accounts(judge, path, count):
    def parse(text):
        rows = [line.split(":") for line in text.splitlines()]
        # The last field of a group, and of a group's shadow, are members: sets.
        members = path in ("/etc/group", "/etc/gshadow")
        return {row[0]: [frozenset(f.split(",")) if members and at == count - 1 else f for at, f in enumerate(row)]
                for row in rows}

    old, base, clone, result = in_all(judge, path, parse)
    for name in old.keys() | base.keys() | clone.keys() | result.keys():
        versions = [side.get(name) for side in (old, base, clone)]
        decided, row = three(*versions)
        if not decided:
            row = [merged_field(*fields) for fields in zip(versions[0] or [None] * count, versions[1], versions[2])]
        if row != result.get(name):
            problem(f"{path}: {name} is {result.get(name)} instead of {row}")


def merged_field(old, base, clone):
    if isinstance(base, frozenset):
        old = (old or frozenset()) - {""}
        base, clone = base - {""}, clone - {""}
        return frozenset((base & clone) | (base - old) | (clone - old)) or frozenset({""})
    return three(old, base, clone)[1]


def lines(judge, path):
    old, base, clone, result = in_all(judge, path, lambda text: set(text.splitlines()))
    wanted = (base & clone) | (base - old) | (clone - old)
    if result != wanted:
        problem(f"{path}: missing {sorted(wanted - result)}, too many {sorted(result - wanted)}")


def stanzas(judge, path, keys):
    def parse(text):
        found = {}
        for stanza in filter(None, (part.strip("\n") for part in text.split("\n\n"))):
            fields = dict(re.findall(r"^([\w-]+):[ \t]*(.*)$", stanza, re.M))
            found[tuple(fields.get(key, "") for key in keys)] = stanza
        return found

    old, base, clone, result = in_all(judge, path, parse)
    for key in sorted(old.keys() | base.keys() | clone.keys() | result.keys()):
        decided, stanza = three(old.get(key), base.get(key), clone.get(key))
        if path == "/var/lib/dpkg/status" and key[0] in judge.expected.packages:
            decided, side = True, judge.expected.packages[key[0]]
            stanza = (base if side == "base" else clone).get(key)
        if path == "/var/lib/apt/extended_states" and key[0] in judge.expected.packages:
            continue
        may = [stanza] if decided else [base.get(key), clone.get(key)]
        if result.get(key) not in may:
            problem(f"{path}: {' '.join(key)} is {result.get(key)!r} instead of {may!r}")


# --- the tools' own opinion, in the result's root ----------------------------------------------

def in_root(tree, *command):
    done = run("chroot", tree.root, "env", "-i", "PATH=/usr/sbin:/usr/bin", "LC_ALL=C", *command)
    return done.returncode, (done.stdout + done.stderr).splitlines()


def tools(judge, scratch):
    """dpkg, apt and the account tools in the roots, each on a throw-away layer above the disk."""
    trees = judge.base, judge.clone, judge.result
    for at, tree in enumerate(trees):
        layer = f"{scratch}/layer-{at}"
        subprocess.check_call(["mount", "-t", "tmpfs", "tmpfs", make(layer)])
        options = f"lowerdir={tree.root},upperdir={make(layer + '/up')},workdir={make(layer + '/work')}"
        subprocess.check_call(["mount", "-t", "overlay", "-o", options, "overlay", tree.root])
    for command in (["dpkg", "--audit"], ["apt-get", "-q", "check"]):
        code, said = in_root(judge.result, *command)
        said = [line for line in said if not re.match(r"Reading|Building|$", line)]
        if code or said:
            problem(f"{' '.join(command)} ends with {code}: {said}")
    for command in (["pwck", "-r"], ["grpck", "-r"], ["dpkg", "--verify"]):
        said = [set(in_root(tree, *command)[1]) for tree in trees]
        # What one side has already, a home that is not there or a changed setting, is not the merge's doing.
        for line in sorted(said[2] - said[0] - said[1]):
            problem(f"{' '.join(command)}: {line}")
    for name, status, value in judge.expected.alternatives:
        code, said = in_root(judge.result, "update-alternatives", "--query", name)
        gone = [line for line in said if line.startswith("Alternative: ") and f"/usr{line[13:]}" not in judge.result
                and line[13:] not in judge.result]
        if code or gone or f"Status: {status}" not in said or f"Value: {value}" not in said:
            problem(f"the alternatives of {name} are not {status}, {value}: {said}")


def make(folder):
    os.makedirs(folder, exist_ok=True)
    return folder


def counts(old, new):
    count = Counter()
    for path in old.keys() | new.keys():
        was, now = old.get(path), new.get(path)
        if was is None or now is None:
            count["made" if was is None else "deleted"] += 1
        elif not was.same(now):
            count["changed"] += 1
    return count


def own_bytes(old, clone):
    """Each file once, however many names it has."""
    files = {}
    for path, entry in clone.items():
        was = old.get(path)
        if was is None or was.content != entry.content or was.facts != entry.facts:
            files[entry.ino] = entry.blocks * 512
    return sum(files.values())


def main():
    disks, expected, scratch = sys.argv[1:5], Expected(sys.argv[5]), sys.argv[6]
    moves = expected.moves
    trees = [Tree(mount(disk, f"{scratch}/{at}"), moves if at < 2 else []) for at, disk in enumerate(disks)]
    judge = Judge(*trees, expected)
    judge.judge()
    tools(judge, scratch)
    old, base, clone, _ = trees
    print(json.dumps({
        "problems": problems,
        "conflicts": sorted(judge.conflicts),
        "own_bytes": own_bytes(old, clone),
        "counts": {"base": counts(old, base), "clone": counts(old, clone)},
    }))


main()
