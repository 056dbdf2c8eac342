"""Runs the jobs of jobs.sh with every contender, and prints the medians.

    jobs.py FOLDER ROUNDS JOBS OUT.json
"""
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

from medians import save

# Not slower than a copy, but for what is measured anew each time.
LIKE = 1 / 1.15


class Run(NamedTuple):
    """A contender's command. What is done before and after it is not timed; `shows` must hold once it has run."""
    words: str
    before: str = ""
    after: str = ""
    shows: str = ""


class Job(NamedTuple):
    """Ours comes first. Files are read before a contender begins, or thrown out of the page cache."""
    contenders: dict
    warm: tuple = ()
    cold: tuple = ()
    # Seconds that ours may take when the machine lets it, and how many times less it is to take than others.
    most: float = None
    aims: dict = {}
    # Runs in each round, more of the short ones.
    times: int = 1


def copies(source, aim=LIKE):
    """`cp` as it is, and with its file as durable as ours are."""
    copy = f"cp --sparse=always {source} out"
    return {
        "cp": Run(f"cp {source} out", after="rm out"),
        "cp --sparse=always": Run(copy, after="rm out"),
        "cp --sparse=always, synced": Run(f"{copy}; sync out", after="rm out"),
    }, dict.fromkeys(("cp --sparse=always", "cp --sparse=always, synced"), aim)


def converts(source, kind, to):
    """qemu-img at its fastest."""
    convert = f"qemu-img convert -f {kind} -O {to} -m 16 -W {source} out"
    return {
        "qemu-img convert": Run(convert, after="rm out"),
        "qemu-img convert, synced": Run(f"{convert}; sync out", after="rm out"),
    }, dict.fromkeys(("qemu-img convert", "qemu-img convert, synced"), 1.5)


def imports(source, kind):
    """Both store a raw file."""
    copied, aims = copies(source) if kind == "raw" else ({}, {})
    converted, more = converts(source, kind, "raw")
    ours = Run(f"cowshed import {source} --name in --format {kind}", after="cowshed rm in",
               shows=f"qemu-img compare -q -f raw -F {kind} $(cowshed path in) {source}")
    return Job({"cowshed import": ours, **copied, **converted}, warm=(source,), aims=aims | more)


def exports(kind):
    """The same chain for both; a copy is one of the flat disk."""
    copied, aims = copies(f"flat.{kind}")
    converted, more = converts("$WEB", "qcow2", kind)
    ours = Run(f"cowshed export web out --format {kind}", after="rm out", shows=f"qemu-img compare -q -f {kind} -F raw out flat.raw")
    return Job({"cowshed export": ours, **copied, **converted}, warm=("$BASE", "$WEB", f"flat.{kind}"), aims=aims | more)


ONTO = "qemu-img rebase -u -f qcow2"
COMMIT = f"cp --sparse=always sparse.raw below.raw; cp $WEB top.qcow2; {ONTO} -F raw -b below.raw top.qcow2"
FOLD = "cowshed clone base fold; cp lower.qcow2 $FOLD; cowshed checkpoint fold; cp upper.qcow2 $FOLD"
LAYERS = f"cp lower.qcow2 low.qcow2; cp upper.qcow2 up.qcow2; {ONTO} -F raw -b $BASE low.qcow2; {ONTO} -F qcow2 -b low.qcow2 up.qcow2"

JOBS = {
    "import, sparse raw": imports("sparse.raw", "raw"),
    "import, full raw": imports("full.raw", "raw"),
    "import, qcow2": imports("flat.qcow2", "qcow2"),
    "import, zlib qcow2": imports("zlib.qcow2", "qcow2"),
    "import, zstd qcow2": imports("zstd.qcow2", "qcow2"),
    "export, raw": exports("raw"),
    "export, qcow2": exports("qcow2"),
    "compare, equal": Job({
        "cowshed diff --blocks": Run("cowshed diff web flat --blocks"),
        "qemu-img compare": Run("qemu-img compare -q -f qcow2 -F raw $WEB flat.raw"),
    }, warm=("$BASE", "$WEB", "$FLAT", "flat.raw"), aims={"qemu-img compare": 1.5}),
    "verify, cold": Job({
        "cowshed verify": Run("cowshed verify full"),
        "cat": Run("cat full.raw >/dev/null"),
        "sha256sum": Run("sha256sum full.raw"),
    }, cold=("$FULL", "full.raw"), aims={"cat": LIKE, "sha256sum": 1.5}),
    "commit into the base": Job({
        "cowshed promote": Run("cowshed promote web --update base", after="cowshed rm base@2"),
        "qemu-img commit": Run("qemu-img commit -q top.qcow2", before=COMMIT, after="rm below.raw top.qcow2"),
        "cp and qemu-img commit": Run("cp --sparse=always below.raw kept.raw; sync kept.raw; qemu-img commit -q top.qcow2",
                                      before=COMMIT, after="rm below.raw kept.raw top.qcow2"),
    }, warm=("$BASE", "$WEB"), aims={"cp and qemu-img commit": 1.5}),
    "fold of two layers": Job({
        "cowshed rm --checkpoint": Run("cowshed rm fold --checkpoint 1", before=FOLD, after="cowshed rm fold",
                                       shows="qemu-img compare -q -f qcow2 -F raw $FOLD folded.raw"),
        "qemu-img commit": Run("qemu-img commit -q -d up.qcow2", before=LAYERS, after="rm low.qcow2 up.qcow2"),
    }, warm=("$BASE",), aims={"qemu-img commit": 1}),
    "1000 clones": Job({
        "cowshed clone --count 1000": Run("cowshed clone base many --count 1000", after="cowshed rm $(seq -f many-%g 1000)"),
        "qemu-img create, 1000 times": Run(
            "for n in $(seq 1000); do qemu-img create -q -f qcow2 -F raw -b $BASE many/$n.qcow2; done",
            before="mkdir many", after="rm -r many"),
    }, most=5, aims={"qemu-img create, 1000 times": 10}),
    "one clone": Job({
        "cowshed clone": Run("cowshed clone base one", after="cowshed rm one"),
        "qemu-img create": Run("qemu-img create -q -f qcow2 -F raw -b $BASE one.qcow2", after="rm one.qcow2"),
    }, times=5),
    "list of 10,000 clones": Job({"cowshed list": Run("cowshed --store crowd list")}, most=0.3, times=5),
    "open a clone of 1 TiB": Job({
        "cowshed info": Run("cowshed info large"),
        "qemu-img info": Run("qemu-img info -f qcow2 $LARGE"),
    }, most=0.005, aims={"qemu-img info": 1}, times=5),
    "check of 1 TiB of a clone's own": Job({
        "cowshed check": Run("cowshed check mapped"),
        "qemu-img check": Run("qemu-img check -q -f qcow2 $MAPPED"),
    }, most=1, aims={"qemu-img check": 1}),
}


def shell(text):
    if text:
        subprocess.run(["bash", "-ec", text], check=True, stdout=subprocess.DEVNULL)


def cached(job):
    """Puts the job's files where it wants them."""
    for name in map(os.path.expandvars, job.warm + job.cold):
        with open(name, "rb", buffering=0) as file:
            if name in map(os.path.expandvars, job.cold):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                continue
            while file.readinto(BUFFER):
                pass


BUFFER = bytearray(1 << 20)


def timed(run):
    """Seconds, seconds of processor time and MiB at the peak of a command; a shell only where it needs one."""
    words = os.path.expandvars(run.words)
    argv = ["bash", "-ec", words] if any(sign in words for sign in ";>$") else shlex.split(words)
    start = time.monotonic()
    child = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    took = time.monotonic() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{words} failed")
    return {"s": round(took, 4), "cpu_s": round(used.ru_utime + used.ru_stime, 4), "mib": used.ru_maxrss >> 10}


def one(name, job, contender, number):
    run = job.contenders[contender]
    shell(run.before)
    cached(job)
    # What the one before left to be written is not to cost this one.
    shell("sync -f .")
    result = {"round": number, "job": name, "contender": contender, **timed(run), "load": os.getloadavg()[0]}
    shell(run.shows if number == 1 else "")
    shell(run.after)
    return result


def row(name, job, runs):
    """Medians of a job, how much longer the others took than ours, and what is missed."""
    found, (ours, *_) = {}, job.contenders
    for contender in job.contenders:
        many = [run for run in runs if (run["job"], run["contender"]) == (name, contender)]
        found[contender] = {key: statistics.median(run[key] for run in many) for key in ("s", "cpu_s", "mib")}
        found[contender]["best_s"] = min(run["s"] for run in many)
        # Side by side in each round: the machine's other work is that of the moment.
        pairs = zip(many, (run for run in runs if (run["job"], run["contender"]) == (name, ours)))
        found[contender]["ratio"] = round(statistics.median(theirs["s"] / own["s"] for theirs, own in pairs), 2)
    missed = [f"{found[other]['ratio']:.2f} of {other}, the aim is {aim:.2f}"
              for other, aim in job.aims.items() if found[other]["ratio"] < aim]
    return {"job": name, "contenders": found, "most_s": job.most, "missed": missed}


def table(rows):
    print("\n| job | contender | s | CPU s | MiB at the peak | times ours |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for job in rows:
        for number, (contender, found) in enumerate(job["contenders"].items()):
            ratio = f"{found['ratio']:.2f}" if number else ""
            print(f"| {'' if number else job['job']} | {contender} | {found['s']:.3f} | {found['cpu_s']:.3f} | {found['mib']:.0f} | {ratio} |")
    print()


def main(folder, rounds, wanted, out):
    out = os.path.abspath(out)
    os.chdir(folder)
    jobs = {name: job for name, job in JOBS.items() if any(part in name for part in wanted.split(","))}
    runs = []
    for number in range(1, rounds + 1):
        for name, job in jobs.items():
            contenders = list(job.contenders)
            shift = number % len(contenders)
            for contender in (contenders[shift:] + contenders[:shift]) * job.times:
                runs.append(one(name, job, contender, number))
                print(json.dumps(runs[-1]), file=sys.stderr)
    rows = [row(name, job, runs) for name, job in jobs.items()]
    table(rows)
    print(f"medians of {save(runs, rows, out)} rounds; all runs in {out}")
    broken = False
    for found in rows:
        for missed in found["missed"]:
            print(f"aim missed: {found['job']}: {missed}")
        took = next(iter(found["contenders"].values()))["best_s"]
        if found["most_s"] and took > found["most_s"]:
            print(f"BROKEN: {found['job']}: {took} s at best, at most {found['most_s']} s are allowed")
            broken = True
    sys.exit(broken)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4])
