"""Runs view.sh's jobs with every contender, and prints the medians.

    view.py FOLDER ROUNDS SECONDS PART-OF-JOBS-NAMES OUT.json
"""
import json
import os
import signal
import statistics
import subprocess
import sys
import time

from medians import save

# As many as a mount has by itself.
THREADS = os.environ.get("THREADS", "4")
# Clone, fio's arguments, whether the page cache is empty at the start. "new" is a clone that nothing was written to.
DIRECT, BUFFERED, DEEP = "--direct=1 --ioengine=psync", "--direct=0 --ioengine=psync", "--direct=1 --ioengine=io_uring --iodepth=32"
GIB = "--size=1g"
# Each place once.
TOUCH = "--rw=randwrite --offset=1g"
JOBS = {
    "read 4k": ("fresh", f"{DIRECT} {GIB} --rw=randread --bs=4k", False),
    "read 4k, 2 jobs": ("fresh", f"{DIRECT} {GIB} --rw=randread --bs=4k --numjobs=2", False),
    "read 4k, 32 deep": ("fresh", f"{DEEP} {GIB} --rw=randread --bs=4k", False),
    "read 4k, 32 deep, 2 jobs": ("fresh", f"{DEEP} {GIB} --rw=randread --bs=4k --numjobs=2", False),
    "read 4k, 32 deep, cold": ("fresh", f"{DEEP} {GIB} --rw=randread --bs=4k", True),
    "read 4k, 32 deep, quarter own": ("part", f"{DEEP} {GIB} --rw=randread --bs=4k", False),
    "read 4k, 32 deep, all own": ("own", f"{DEEP} {GIB} --rw=randread --bs=4k", False),
    "read 4k, 32 deep, chain of 4": ("four", f"{DEEP} {GIB} --rw=randread --bs=4k", False),
    "read 4k, 32 deep, chain of 16": ("chain", f"{DEEP} {GIB} --rw=randread --bs=4k", False),
    "read 64k, 32 deep": ("fresh", f"{DEEP} {GIB} --rw=randread --bs=64k", False),
    "read 1M in order": ("fresh", f"{DIRECT} {GIB} --rw=read --bs=1m", False),
    "read 1M in order, buffered": ("fresh", f"{BUFFERED} {GIB} --rw=read --bs=1m", False),
    "write 4k": ("own", f"{DIRECT} {GIB} --rw=randwrite --bs=4k", False),
    "write 4k, 32 deep": ("own", f"{DEEP} {GIB} --rw=randwrite --bs=4k", False),
    "write 4k, 32 deep, 2 jobs": ("own", f"{DEEP} {GIB} --rw=randwrite --bs=4k --numjobs=2", False),
    "write 1M in order": ("own", f"{DIRECT} {GIB} --rw=write --bs=1m", False),
    "write 1M in order, laid in order": ("laid", f"{DIRECT} {GIB} --rw=write --bs=1m", False),
    "write 4k and fdatasync": ("own", f"{DIRECT} {GIB} --rw=randwrite --bs=4k --fdatasync=1", False),
    "first write 4k, 32 deep": ("new", f"{DEEP} {TOUCH} --size=512m --bs=4k", False),
    "first write 4k, buffered": ("new", f"{BUFFERED} {TOUCH} --size=256m --bs=4k", False),
    "first write 64k, 32 deep": ("new", f"{DEEP} {TOUCH} --size=1g --bs=64k", False),
}
# Each transport of the view, with the bare server over the same one. Rings are measured where the kernel has them on.
SWITCH = "/sys/module/fuse/parameters/enable_uring"
TRANSPORTS = ["dev"]
if os.path.exists(SWITCH) and open(SWITCH).read().strip() == "Y":
    TRANSPORTS.append("uring")
CONTENDERS = ["raw", *(f"{who} {how}" for how in TRANSPORTS for who in ("bare", "cowshed")), "qemu"]
# The aims: this many times as much as that contender.
AIMS = {"dev": {
    "read 4k": {"qemu": 1.2, "bare": 0.9}, "read 4k, 32 deep": {"qemu": 1.8, "bare": 0.9},
    "read 4k, 32 deep, cold": {"qemu": 1.6}, "read 1M in order": {"qemu": 2.5, "raw": 0.85},
    "write 1M in order": {"qemu": 1.5, "raw": 0.85},
    "write 1M in order, laid in order": {"qemu": 1.5, "raw": 0.85}, "first write 4k, 32 deep": {"qemu": 4},
    "first write 4k, buffered": {"qemu": 1.5}, "write 4k": {"qemu": 2.5, "bare": 0.9},
    "write 4k, 32 deep": {"qemu": 2.5, "bare": 0.9}, "write 4k and fdatasync": {"qemu": 1.3},
}, "uring": {
    "read 4k": {"qemu": 1.5, "bare": 0.9}, "read 4k, 32 deep": {"qemu": 2.5, "bare": 0.9},
    "write 4k": {"bare": 0.9}, "write 4k, 32 deep": {"bare": 0.9},
}}


def cowshed(*words):
    return subprocess.run([os.environ["COWSHED"], *words], check=True, capture_output=True, text=True).stdout.strip()


def until(what, holds):
    for _ in range(1000):
        if holds():
            return
        time.sleep(0.01)
    sys.exit(f"{what} does not come up")


class Server:
    """One contender while it serves; `target` is the disk as a file."""

    def __init__(self, folder, contender, clone):
        self.process = self.mount = None
        raw = os.path.join(folder, "limit.raw")
        who, _, how = contender.partition(" ")
        if who in ("raw", "bare") and clone == "new":
            raw = os.path.join(folder, "new.raw")
            with open(raw, "wb") as new:
                new.truncate(4 << 30)
        getattr(self, f"by_{who}")(folder, raw, clone, how)

    def by_raw(self, _folder, raw, _clone, _how):
        self.target = raw

    def by_bare(self, folder, raw, _clone, how):
        self.mount = os.path.join(folder, "bare")
        self.target = os.path.join(self.mount, "disk.raw")
        self.start(os.environ["BARE"], raw, self.mount, THREADS, how)
        until("the bare server", lambda: os.path.ismount(self.mount))

    def by_cowshed(self, folder, _raw, clone, how):
        self.mount = os.path.join(folder, "view")
        self.target = os.path.join(self.mount, "clones", f"{clone}.raw")
        self.start(os.environ["COWSHED"], "mount", "--foreground", "--threads", THREADS, "--transport", how, self.mount)
        until("the view", lambda: os.path.exists(self.target))

    def by_qemu(self, folder, _raw, clone, _how):
        self.target = os.path.join(folder, "export.raw")
        open(self.target, "wb").close()
        image = cowshed("path", clone)
        self.start(
            "qemu-storage-daemon", "--blockdev",
            f"driver=qcow2,node-name=top,discard=unmap,file.driver=file,file.filename={image},file.aio=threads,file.discard=unmap",
            "--export", f"type=fuse,id=e,node-name=top,mountpoint={self.target},writable=on,allow-other=off")
        own = os.stat(folder).st_dev
        until("qemu's export", lambda: os.stat(self.target).st_dev != own)

    def start(self, *words):
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL)

    def processor_seconds(self):
        if not self.process:
            return 0
        with open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak_mib(self):
        if not self.process:
            return 0
        with open(f"/proc/{self.process.pid}/status") as file:
            return next(int(line.split()[1]) // 1024 for line in file if line.startswith("VmHWM"))

    def stop(self):
        if self.mount:
            subprocess.run(["umount", self.mount], check=True)
        elif self.process:
            self.process.send_signal(signal.SIGTERM)
        if self.process and self.process.wait(60):
            sys.exit(f"{self.process.args[0]} failed")


def prepare(folder, contender, clone, cold, buffered):
    """Brings what a contender reads into the page cache, or empties that; then waits a moment for other work to end.

    What fills new pages finds free memory that was used just before.
    """
    subprocess.run(["sync"], check=True)
    if cold:
        with open("/proc/sys/vm/drop_caches", "w") as file:
            file.write("1")
        WARM.clear()
    else:
        files = [os.path.join(folder, "limit.raw")]
        if contender == "qemu" or contender.startswith("cowshed"):
            info = subprocess.run(["qemu-img", "info", "-U", "--backing-chain", "--output=json", cowshed("path", clone)],
                                  check=True, capture_output=True, text=True).stdout
            files = [image["filename"] for image in json.loads(info)]
        for path in files:
            warm(path)
    for _ in range(20):
        before = busy()
        time.sleep(0.3)
        if busy() - before < 0.2 * 0.3 * os.cpu_count():
            break
    if clone == "new" or buffered:
        use_memory()


# Files whose pages warm() has brought in.
WARM = set()


def warm(path):
    """Reads the first GiB page by page: what the kernel reads ahead it keeps in larger pieces, and changing a bit of those is slow.

    What others have read before leaves marks at which the kernel reads ahead anyway, so that is forgotten first.
    """
    with open(path, "rb", buffering=0) as file:
        if path not in WARM:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            WARM.add(path)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for at in range(0, min(os.path.getsize(path), 1100 << 20), 1 << 16):
            os.pread(file.fileno(), 1 << 16, at)


USE = """
import mmap
pages = mmap.mmap(-1, 3 << 29)
pages.madvise(mmap.MADV_HUGEPAGE)
for at in range(0, len(pages), mmap.PAGESIZE):
    pages[at] = 1
"""


def use_memory():
    """A virtual machine may give free memory back to its host, and then each page that is taken anew waits for that one."""
    subprocess.run([sys.executable, "-c", USE], check=True)


def busy():
    """Seconds that the processors have worked since the host's start."""
    with open("/proc/stat") as file:
        fields = [int(field) for field in file.readline().split()[1:]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def run(folder, name, contender, seconds, number):
    clone, arguments, cold = JOBS[name]
    if clone == "new":
        cowshed("clone", "base", "new")
    server = Server(folder, contender, clone)
    # The raw file is the limit of what lies in the host's page cache, or of the disk.
    if contender == "raw" and not cold:
        arguments = arguments.replace("--direct=1", "--direct=0")
    prepare(folder, contender, clone, cold, "--direct=0" in JOBS[name][1])
    used = server.processor_seconds()
    fio = subprocess.run(
        ["fio", "--name=job", f"--filename={server.target}", "--thread", "--group_reporting", "--output-format=json",
         "--invalidate=0", f"--randseed={number}", *([] if clone == "new" else ["--time_based", f"--runtime={seconds}"]), *arguments.split()],
        check=True, capture_output=True, text=True).stdout
    result = json.loads(fio[fio.index("{"):])["jobs"][0]
    used, peak = server.processor_seconds() - used, server.peak_mib()
    server.stop()
    if result["error"]:
        sys.exit(f"fio failed in {name} on {contender}: error {result['error']}")
    if clone == "new":
        subprocess.run(["qemu-img", "check", "-q", cowshed("path", "new")], check=True)
        cowshed("rm", "new")
    side = result["read"] if result["read"]["total_ios"] else result["write"]
    cpu = (result["usr_cpu"] + result["sys_cpu"]) / 100 * result["job_runtime"] / 1000
    return {
        "job": name, "contender": contender, "round": number, "iops": round(side["iops"]),
        "cpu_us": round((used + cpu) * 1e6 / side["total_ios"], 2), "mean_us": round(side["clat_ns"]["mean"] / 1000, 1),
        "peak_mib": peak, "load": os.getloadavg()[0],
    }


def table(runs, out):
    found = {}
    for one in runs:
        found.setdefault(one["job"], {}).setdefault(one["contender"], []).append(one)
    rows = [{"job": job, **{who: {key: statistics.median(one[key] for one in many) for key in ("iops", "cpu_us", "peak_mib")}
                            for who, many in by.items()}} for job, by in found.items()]
    rounds = save(runs, rows, out)
    missed = [miss for how in TRANSPORTS for miss in one_table(rows, how)]
    peak = max(row[f"cowshed {how}"]["peak_mib"] for row in rows for how in TRANSPORTS)
    print(f"\nmedians of {rounds} rounds, requests a second; cowshed at its peak {peak} MiB; all runs in {out}")
    print("\n".join(f"missed: {what}" for what in missed))


def one_table(rows, how):
    """Prints the table of one transport; returns what is missed."""
    ours, bare = f"cowshed {how}", f"bare {how}"
    print(f"\n| job, over {how} | raw file | bare server | cowshed | qemu | to qemu | to bare | to raw | µs of processor: bare | cowshed | qemu |")
    print("| --- |" + " ---: |" * 10)
    missed = []
    for row in rows:
        iops = {who: row[key]["iops"] for who, key in (("raw", "raw"), ("bare", bare), ("cowshed", ours), ("qemu", "qemu"))}
        ratio = {who: iops["cowshed"] / iops[who] for who in iops}
        print(f"| {row['job']} | " + " | ".join(f"{one:,.0f}" for one in iops.values()) + " | "
              + " | ".join(f"{ratio[who]:.2f}" for who in ("qemu", "bare", "raw")) + " | "
              + " | ".join(f"{row[who]['cpu_us']:.1f}" for who in (bare, ours, "qemu")) + " |")
        missed += [f"{row['job']} over {how}: {ratio[who]:.2f} of {who}, the aim is {aim}"
                   for who, aim in AIMS[how].get(row["job"], {}).items() if ratio[who] < aim]
    deep = {row["job"]: row[ours]["iops"] for row in rows}
    if "read 4k, 32 deep, chain of 16" in deep and "read 4k, 32 deep" in deep:
        ratio = deep["read 4k, 32 deep, chain of 16"] / deep["read 4k, 32 deep"]
        missed += [f"a chain of 16 over {how}: {ratio:.2f} of one layer, the aim is 0.95"] if ratio < 0.95 else []
    return missed


def main(folder, rounds, seconds, part, out):
    runs = []
    for number in range(1, rounds + 1):
        turn = number % len(CONTENDERS)
        for name in JOBS:
            if part in name:
                for contender in CONTENDERS[turn:] + CONTENDERS[:turn]:
                    runs.append(run(folder, name, contender, seconds, number))
                    print(json.dumps(runs[-1]), file=sys.stderr)
    table(runs, out)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5])
