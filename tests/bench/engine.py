"""Runs engine.sh's jobs with every engine, and prints the medians.

    engine.py FOLDER ROUNDS SECONDS OUT.json
"""
import json
import os
import re
import resource
import statistics
import subprocess
import sys

from medians import save

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
STRIDE = 128 * KIB
# Image, kind, bytes of a request, threads. Every job goes over the whole disk.
JOBS = {
    "read 4k, own": ("own", "read", 4 * KIB, 1),
    "read 4k, own, 2 threads": ("own", "read", 4 * KIB, 2),
    "read 4k, base's": ("fresh", "read", 4 * KIB, 1),
    "read 4k, base's, 2 threads": ("fresh", "read", 4 * KIB, 2),
    "read 4k, chain of 16": ("deep", "read", 4 * KIB, 1),
    "read 64k, base's": ("fresh", "read", 64 * KIB, 1),
    "read 1M, base's": ("fresh", "read", MIB, 1),
    "write 4k, own": ("own", "write", 4 * KIB, 1),
    "write 4k, own, 2 threads": ("own", "write", 4 * KIB, 2),
    "write 4k and flush, own": ("own", "sync", 4 * KIB, 1),
    "first write 4k": ("new", "touch", 4 * KIB, 1),
    "first write 4k, 2 threads": ("new", "touch", 4 * KIB, 2),
    "first write 64k": ("new", "touch", 64 * KIB, 1),
}
SIZES = {"own": 512 * MIB, "fresh": 512 * MIB, "deep": 512 * MIB, "new": 2 * GIB}
# Engine of the load program, and whether the clone has plain L2 tables.
ENGINES = {
    "raw": ("raw", False), "cowshed": ("cowshed", False), "store": ("store", False), "plain": ("cowshed", True),
    "imago": ("imago", True), "qcow2-rs": ("qcow2-rs", True), "qemu-img": ("qemu-img", True),
}


def cowshed(*words):
    return subprocess.run([os.environ["COWSHED"], *words], check=True, capture_output=True, text=True).stdout.strip()


def can(engine, job):
    image, kind, _, threads = job
    if engine == "qcow2-rs":
        # It is not shared by threads, destroys snapshots and zeroes when it writes, and has no deep chain here.
        return kind == "read" and threads == 1 and image != "deep"
    return True


def by_qemu(path, job, seconds):
    """qemu-img bench knows no random places: a step that is odd to the size visits all in a scattered order."""
    image, kind, block, threads = job
    count = {"read": 60_000 * seconds, "write": 40_000 * seconds, "sync": 200 * seconds, "touch": SIZES[image] // STRIDE}[kind]
    if block == MIB:
        count //= 20
    step = 1019 * (STRIDE if kind == "touch" else block)
    words = ["qemu-img", "bench", "-f", "qcow2", "-t", "writeback", "-c", str(count), "-d", str(threads),
             "-s", str(block), "-S", str(step)]
    words += [] if kind == "read" else ["-w"]
    words += ["--flush-interval=1"] if kind == "sync" else []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = subprocess.run([*words, path], check=True, capture_output=True, text=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = float(re.search(r"completed in ([\d.]+) seconds", said)[1])
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"iops": round(count / took), "cpu_us": round(used * 1e6 / count, 2)}


def image_of(folder, engine, image):
    """Its path; a new one each time for first writes."""
    program, plain = ENGINES[engine]
    if program == "raw":
        path = os.path.join(folder, "new.raw" if image == "new" else "limit.raw")
        if image == "new":
            with open(path, "wb") as new:
                new.truncate(SIZES[image])
        return path
    if program == "qcow2-rs":
        return os.path.join(folder, "alone.qcow2" if image == "own" else "over.qcow2")
    clone = f"{image}-{'plain' if plain else 'wide'}"
    if image == "new":
        cowshed("clone", *(["--compat"] if plain else []), "empty", clone)
    return cowshed("path", clone)


def run(folder, name, engine, job, seconds):
    image, kind, block, threads = job
    path = image_of(folder, engine, image)
    if engine == "qemu-img":
        result = by_qemu(path, job, seconds)
    else:
        words = [ENGINES[engine][0], path, kind, str(block), "0", str(SIZES[image]), str(threads), str(seconds)]
        # qcow2-rs looks for a base in the working folder.
        done = subprocess.run([os.environ["LOAD"], *words], check=True, capture_output=True, text=True, cwd=folder)
        result = json.loads(done.stdout)
    if image == "new" and engine == "raw":
        os.remove(path)
    elif image == "new":
        subprocess.run(["qemu-img", "check", "-q", path], check=True)
        cowshed("rm", os.path.basename(os.path.dirname(path)))
    return {"job": name, "engine": engine, **result, "load": os.getloadavg()[0]}


def table(runs, out):
    found = {}
    for one in runs:
        found.setdefault(one["job"], {}).setdefault(one["engine"], []).append(one)
    rows = []
    for job, engines in found.items():
        medians = {engine: {key: statistics.median(one[key] for one in many) for key in ("iops", "cpu_us")}
                   for engine, many in engines.items()}
        rows.append({"job": job, **medians})
    rounds = save(runs, rows, out)
    deep, flat = (next(row for row in rows if row["job"] == name) for name in ("read 4k, chain of 16", "read 4k, base's"))
    for engine in ("cowshed", "store", "plain", "imago", "qemu-img"):
        print(f"{engine} reads a chain of 16 at {deep[engine]['iops'] / flat[engine]['iops']:.2f} of one layer")
    for key, what in (("iops", "requests a second"), ("cpu_us", "processor microseconds for each")):
        print(f"\n{what}\n\n| job | " + " | ".join(ENGINES) + " |")
        print("| --- |" + " ---: |" * len(ENGINES))
        for row in rows:
            cells = [f"{row[engine][key]:,.{0 if key == 'iops' else 1}f}" if engine in row else "-" for engine in ENGINES]
            print(f"| {row['job']} | " + " | ".join(cells) + " |")
    print(f"\nmedians of {rounds} rounds; all runs in {out}")


def main(folder, rounds, seconds, out):
    runs = []
    for number in range(1, rounds + 1):
        for name, job in JOBS.items():
            engines = list(ENGINES)
            engines = engines[number % len(engines):] + engines[:number % len(engines)]
            for engine in engines:
                if can(engine, job):
                    runs.append({"round": number, **run(folder, name, engine, job, seconds)})
                    print(json.dumps(runs[-1]), file=sys.stderr)
    table(runs, out)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
