"""Turns fio's output into lines, and lines into medians, ratios and a table.

    medians.py line FIO.json JOB THREADS CONTENDER ROUND     one JSON line
    medians.py table RUNS.jsonl OUT.json                     the report; the table goes to standard output
"""
import json
import os
import statistics
import sys


def line(path, job, threads, contender, round_number):
    with open(path) as file:
        text = file.read()
    result = json.loads(text[text.index("{"):])["jobs"][0]
    if result["error"]:
        sys.exit(f"fio failed in {job} on {contender}: error {result['error']}")
    side = result["read"] if result["read"]["total_ios"] else result["write"]
    print(json.dumps({
        "job": job, "threads": int(threads), "contender": contender, "round": int(round_number),
        "iops": round(side["iops"]), "mib_s": round(side["bw_bytes"] / 2**20, 1),
        "mean_us": round(side["clat_ns"]["mean"] / 1000, 1), "load": os.getloadavg()[0],
    }))


def save(runs, rows, out):
    """Writes the report of all runs; the number of rounds."""
    report = {
        "rounds": max(run["round"] for run in runs), "processors": os.cpu_count(),
        "kernel": os.uname().release, "medians": rows, "runs": runs,
    }
    os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
    with open(out, "w") as file:
        json.dump(report, file, indent=1)
        file.write("\n")
    return report["rounds"]


def table(path, out):
    with open(path) as file:
        runs = [json.loads(row) for row in file]
    median = {}
    for run in runs:
        median.setdefault((run["job"], run["threads"], run["contender"]), []).append(run["iops"])
    median = {key: statistics.median(values) for key, values in median.items()}
    jobs = list(dict.fromkeys(run["job"] for run in runs))
    rows = []
    for job in jobs:
        row = {"job": job}
        for contender in ("cowshed", "qemu"):
            one, four = (median[(job, threads, contender)] for threads in (1, 4))
            row[contender] = {"one_thread_iops": one, "four_threads_iops": four, "scaling": round(four / one, 2)}
        for count in ("one_thread", "four_threads"):
            key = count + "_iops"
            row[count + "_ratio"] = round(row["cowshed"][key] / row["qemu"][key], 2)
        rows.append(row)
    rounds = save(runs, rows, out)
    print("| job | cowshed, 1 thread | 4 threads | 4 / 1 | qemu, 1 thread | 4 threads | 4 / 1 | ratio, 1 | ratio, 4 |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in rows:
        cells = [row["job"]]
        for contender in ("cowshed", "qemu"):
            values = row[contender]
            cells += [f"{values['one_thread_iops']:,.0f}", f"{values['four_threads_iops']:,.0f}", values["scaling"]]
        cells += [row["one_thread_ratio"], row["four_threads_ratio"]]
        print("| " + " | ".join(str(cell) for cell in cells) + " |")
    print(f"medians of {rounds} rounds, IOPS; all runs in {out}")


if __name__ == "__main__":
    {"line": line, "table": table}[sys.argv[1]](*sys.argv[2:])
