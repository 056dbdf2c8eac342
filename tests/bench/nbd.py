"""Turns what `qemu-img bench` says into lines, and lines into medians, ratios and a table.

    nbd.py line SAID OPTIONS JOB CONTENDER ROUND     one JSON line
    nbd.py table RUNS.jsonl OUT.json                 the report; the table goes to standard output
"""
import json
import os
import re
import statistics
import sys

from medians import save


def line(said, options, job, contender, round_number):
    seconds = float(re.search(r"completed in ([0-9.]+) seconds", said)[1])
    words = options.split()
    count, size = (int(words[words.index(key) + 1]) for key in ("-c", "-s"))
    print(json.dumps({
        "job": job, "contender": contender, "round": int(round_number), "iops": round(count / seconds),
        "mib_s": round(count * size / seconds / 2**20, 1), "load": os.getloadavg()[0],
    }))


def table(path, out):
    with open(path) as file:
        runs = [json.loads(row) for row in file]
    rows = []
    for job in dict.fromkeys(run["job"] for run in runs):
        iops = {
            contender: [run["iops"] for run in runs if (run["job"], run["contender"]) == (job, contender)]
            for contender in ("cowshed", "qemu")
        }
        ours, theirs = (statistics.median(values) for values in iops.values())
        rows.append({"job": job, "cowshed": ours, "qemu": theirs, "ratio": round(ours / theirs, 2), "all": iops})
    rounds = save(runs, rows, out)
    print("| job | cowshed | qemu-nbd | ratio |")
    print("| --- | ---: | ---: | ---: |")
    for row in rows:
        print(f"| {row['job']} | {row['cowshed']:,.0f} | {row['qemu']:,.0f} | {row['ratio']} |")
    print(f"medians of {rounds} rounds, requests a second; all runs in {out}")


if __name__ == "__main__":
    {"line": line, "table": table}[sys.argv[1]](*sys.argv[2:])
