"""What the benchmarks' reports have in common."""
import json
import os


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

