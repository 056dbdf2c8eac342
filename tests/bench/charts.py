"""Draws the tables of docs/benchmarks.md, so that a chart never says what its table does not.

    charts.py BENCHMARKS.md FOLDER [--check]

A table is drawn when `<!-- chart: NAME | TITLE | KIND -->` stands above it; FOLDER/NAME.svg shows it as bars. KIND is `rows` and numbers
of columns: each row is a group, those columns are its bars, named by the header; or `times`: rows of a job and its contenders,
whose last column says how many times ours they take. With --check nothing is written; it fails when a chart is not that of its table.
"""
import html
import math
import os
import re
import sys

COLOURS = ("#1f6feb", "#d29922", "#2da44e", "#bf3989", "#8250df", "#6e7781", "#cf222e")
TEXT = 'font-family="sans-serif" font-size="12" fill="#57606a"'
LEFT, WIDTH, BAR, GAP, TOP = 260, 900, 14, 10, 36
# Characters of a label that there is room for.
ROOM = 120


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def number(cell):
    found = re.search(r"-?[\d,]*\.?\d+", cell)
    return float(found[0].replace(",", "")) if found else None


def tables(text):
    """Each marked table: name, title, kind, header, rows."""
    for mark in re.finditer(r"<!-- chart: (.+?) \| (.+?) \| (.+?) -->\n+((?:\|.*\n)+)", text):
        header, _, *rows = [cells(line) for line in mark[4].splitlines()]
        yield (*mark.groups()[:3], header, rows)


def by_rows(header, rows, columns):
    """Groups of bars: what each is of, and value by name."""
    columns = list(columns)
    for row in rows:
        bars = [(header[column], number(row[column])) for column in columns]
        yield row[0].replace("`", ""), [(name, value) for name, value in bars if value is not None]


def by_times(rows):
    group = None
    for job, contender, *_, times in rows:
        if job:
            if group:
                yield group
            group = (job, [])
        # Ours has no number: it is what the others are measured by.
        group[1].append((contender, number(times) or 1.0))
    yield group


def shortened(label):
    return label if len(label) <= ROOM else f"{label[:ROOM]}…"


def draw(title, kind, header, rows):
    what, *columns = kind.split()
    groups = list(by_times(rows) if what == "times" else by_rows(header, rows, map(int, columns)))
    values = [value for _, bars in groups for _, value in bars if value > 0]
    low, high = min(values), max(values)
    # What lies far apart is told by its order of magnitude.
    log = high / low > 50
    floor = math.log10(low) - 0.3

    def length(value):
        share = (math.log10(value) - floor) / (math.log10(high) - floor) if log and value > 0 else value / high
        return max(1, share * (WIDTH - LEFT - 90))

    names = list(dict.fromkeys(name for _, bars in groups for name, _ in bars))
    out, y = [], TOP
    for label, bars in groups:
        out.append(f'<text x="10" y="{y + 11}" {TEXT} font-weight="bold">{html.escape(shortened(label))}</text>')
        y += 18
        for at, (name, value) in enumerate(bars):
            # Contenders have their places; those of jobs are ours, and others.
            colour = COLOURS[min(at, 1) if what == "times" else names.index(name) % len(COLOURS)]
            out.append(f'<text x="{LEFT - 8}" y="{y + 11}" {TEXT} text-anchor="end">{html.escape(name)}</text>')
            out.append(f'<rect x="{LEFT}" y="{y}" width="{length(value):.0f}" height="{BAR - 2}" fill="{colour}"/>')
            out.append(f'<text x="{LEFT + length(value) + 5:.0f}" y="{y + 11}" {TEXT}>{value:,.10g}</text>')
            y += BAR
        y += GAP
    head = f'<text x="10" y="20" {TEXT} font-weight="bold">{html.escape(title)}{" (logarithmic)" if log else ""}</text>'
    body = "\n".join([head, *out])
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}">\n'
            f'<rect width="100%" height="100%" fill="#ffffff"/>\n{body}\n</svg>\n')


def main(source, folder, check):
    with open(source) as file:
        found = list(tables(file.read()))
    if not found:
        sys.exit(f"{source} has no table that is drawn")
    os.makedirs(folder, exist_ok=True)
    for name, title, kind, header, rows in found:
        path = os.path.join(folder, f"{name}.svg")
        chart = draw(title, kind, header, rows)
        if check:
            with open(path) as file:
                if file.read() != chart:
                    sys.exit(f"{path} is not what {source} says: run tests/bench/charts.py {source} {folder}")
            continue
        with open(path, "w") as file:
            file.write(chart)
        print(path)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], "--check" in sys.argv[3:])
