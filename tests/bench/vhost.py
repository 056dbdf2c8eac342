"""Turns single runs of vhost.sh into lines, and lines into medians, ratios and a table.

    vhost.py line RESULT JOB QUEUES DEPTH CONTENDER ROUND     one JSON line
    vhost.py table RUNS.jsonl OUT.json                        the report; the table goes to standard output
"""
import json
import os
import statistics
import sys

from medians import save


def line(result, job, queues, depth, contender, round_number):
    print(json.dumps({
        "job": job, "queues": int(queues), "depth": int(depth), "contender": contender, "round": int(round_number),
        "iops": json.loads(result)["iops"], "load": os.getloadavg()[0],
    }))


def table(path, out):
    with open(path) as file:
        runs = [json.loads(row) for row in file]
    values = {}
    for run in runs:
        values.setdefault((run["job"], run["queues"], run["depth"]), {}).setdefault(run["contender"], []).append(run["iops"])
    rows = []
    for (job, queues, depth), by in values.items():
        row = {"job": job, "queues": queues, "depth": depth}
        row.update({contender: statistics.median(iops) for contender, iops in by.items()})
        row["to_qemu"] = round(row["cowshed"] / max(row["qemu"], 1), 2)
        row["to_view"] = round(row["cowshed"] / max(row["view"], 1), 2)
        rows.append(row)
    rounds = save(runs, rows, out)
    print("| job | queues x depth | cowshed | qemu, chain | qemu, view | to chain | to view |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in rows:
        print(f"| {row['job']} | {row['queues']} x {row['depth']} | {row['cowshed']:,.0f} | {row['qemu']:,.0f} | "
              f"{row['view']:,.0f} | {row['to_qemu']} | {row['to_view']} |")
    print(f"medians of {rounds} rounds, IOPS; all runs in {out}")


if __name__ == "__main__":
    {"line": line, "table": table}[sys.argv[1]](*sys.argv[2:])
