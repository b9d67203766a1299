"""Runs the micro-benchmarks, compares them with the baseline in docs/BENCHMARKS.md, and writes that baseline.

Divan has no output for machines, so its table is read: the median of each row, and the bytes or items per second if it
has them. Rows at 333,333 pieces are set against the same rows at 1000: that ratio doesn't depend on the machine.
What looks worse is run once more before it is said, since a busy machine looks like worse code.
`--self-test` checks the reading and the judging by the examples below, without running a benchmark.
"""

import argparse
import datetime
import doctest
import os
import pathlib
import platform
import re
import subprocess
import sys
import typing

DOCUMENT = pathlib.Path(__file__).resolve().parent.parent / "docs" / "BENCHMARKS.md"
BEGIN, END = "<!-- micro: begin -->", "<!-- micro: end -->"
# A row got worse when it takes more than this many times as long as in the baseline.
WORSE = 1.25
# What the picker does may take this many times as long in a torrent of SCALED pieces as in one of FEW.
RATIO, FEW, SCALED = 2.0, 1000, 333333
UNITS = {"ps": 1e-3, "ns": 1.0, "µs": 1e3, "ms": 1e6, "s": 1e9}
ROW = re.compile(r"^((?:[│ ]  )*)[├╰]─ (\S+) +(.*)$")


class Row(typing.NamedTuple):
    """Median time of one call in nanoseconds, and how much that is per second, as text."""

    ns: float
    rate: str = ""


def parse_time(text):
    """
    >>> parse_time("1.5 µs"), parse_time("993 ns"), parse_time("soon"), parse_time("")
    (1500.0, 993.0, None, None)
    """
    number, _, unit = text.strip().replace(",", "").partition(" ")
    if unit not in UNITS:
        return None
    return float(number) * UNITS[unit]


def show_time(ns):
    """
    >>> [show_time(ns) for ns in (0.5, 12.3456, 993, 1500, 12345678, 2e9)]
    ['0.500 ns', '12.3 ns', '993 ns', '1.50 µs', '12.3 ms', '2.00 s']
    """
    for unit in ("ns", "µs", "ms", "s"):
        if ns < 999.5 or unit == "s":
            break
        ns /= 1000
    return f"{ns:.{max(0, 2 - (ns >= 9.995) - (ns >= 99.95)) + (ns < 0.9995)}f} {unit}"


def parse(output):
    """The rows of divan's table, by name.

    >>> rows = parse('''micro        fastest       │ slowest       │ median        │ mean          │ samples │ iters
    ... ├─ meta                    │               │               │               │         │
    ... │  ╰─ parse                │               │               │               │         │
    ... │     ├─ small  1.2 µs     │ 9 µs          │ 1.5 µs        │ 2 µs          │ 100     │ 400
    ... │     │         80 MB/s    │ 12 MB/s       │ 77.5 MB/s     │ 60 MB/s       │         │
    ... │     ╰─ big    1 ms       │ 2 ms          │ 1.25 ms       │ 1.3 ms        │ 100     │ 100
    ... │               80 MB/s    │ 12 MB/s       │ 66 MB/s       │ 60 MB/s       │         │
    ... │               8 Mitem/s  │ 1 Mitem/s     │ 6 Mitem/s     │ 6 Mitem/s     │         │
    ... ╰─ wire                    │               │               │               │         │
    ...    ╰─ decode  3 ns         │ 9 ns          │ 4 ns          │ 4 ns          │ 100     │ 800
    ... ''')
    >>> for row in rows.items(): print(*row)
    meta::parse::small Row(ns=1500.0, rate='77.5 MB/s')
    meta::parse::big Row(ns=1250000.0, rate='66 MB/s, 6 Mitem/s')
    wire::decode Row(ns=4.0, rate='')
    """
    rows, path = {}, []
    for line in output.splitlines():
        # The tree is drawn with the same bar, so the columns are counted from the end: median, mean, samples, iters are
        # the last four. An empty last column has lost its space.
        figures = [column.strip() for column in f"{line} ".split(" │ ")[-4:]]
        found = ROW.match(line)
        if found:
            depth = len(found[1]) // 3
            path = [*path[:depth], found[2]]
        if len(figures) < 4 or not path:
            continue
        median, name = figures[0], "::".join(path)
        if found and parse_time(median) is not None:
            rows[name] = Row(parse_time(median))
        elif not found and median.endswith("/s") and name in rows:
            rates = [rate for rate in (rows[name].rate, median) if rate]
            rows[name] = rows[name]._replace(rate=", ".join(rates))
    return rows


def few(name):
    """The same row in a torrent of few pieces; `None` for a row without a scale, and for that one itself.

    >>> few("picker::want::333333-pieces-4-peers"), few("picker::want::1000-pieces-4-peers"), few("wire::decode")
    ('picker::want::1000-pieces-4-peers', None, None)
    """
    found = re.fullmatch(r"(.*::)(\d+)(-pieces.*)", name)
    return f"{found[1]}{FEW}{found[3]}" if found and int(found[2]) != FEW else None


def ratio(name, rows):
    """How many times as long as with few pieces, if that can be told.

    >>> ratio("p::5-pieces", {"p::5-pieces": Row(30), "p::1000-pieces": Row(20)}), ratio("p::x", {"p::x": Row(1)})
    (1.5, None)
    """
    base = rows.get(few(name))
    return rows[name].ns / base.ns if base else None


def too_steep(rows):
    """Rows of the picker that take too many times as long as with few pieces.

    >>> rows = {"picker::a::1000-pieces": Row(10), "picker::a::333333-pieces": Row(21)}
    >>> too_steep(rows)
    ['picker::a::333333-pieces']
    >>> too_steep({**rows, "picker::a::333333-pieces": Row(20)})
    []
    """
    return [name for name in rows if name.startswith("picker::") and f"::{SCALED}-" in name and (ratio(name, rows) or 0) > RATIO]


def worse(baseline, rows):
    """
    >>> worse({"a": Row(100), "b": Row(100), "gone": Row(1)}, {"a": Row(125), "b": Row(125.1), "new": Row(9)})
    ['b']
    """
    return [name for name, row in rows.items() if name in baseline and row.ns > baseline[name].ns * WORSE]


def better_of(rows, again):
    """
    >>> better_of({"a": Row(3), "b": Row(3)}, {"a": Row(4), "b": Row(2)})
    {'a': Row(ns=3, rate=''), 'b': Row(ns=2, rate='')}
    """
    return {name: min(row, again.get(name, row), key=lambda r: r.ns) for name, row in rows.items()}


def measure(baseline, run):
    """All rows; those that look bad are run a second time, and the better of two counts.

    `run` takes names, or nothing for all, and gives rows.

    >>> tries = [{"a": Row(300), "b": Row(100)}, {"a": Row(110)}]
    >>> asked = []
    >>> rows = measure({"a": Row(100), "b": Row(100)}, lambda names: asked.append(names) or tries.pop(0))
    >>> rows["a"].ns, asked, worse({"a": Row(100)}, rows)
    (110, [[], ['a']], [])
    >>> worse({"a": Row(100)}, measure({"a": Row(100)}, lambda names: {"a": Row(126)}))
    ['a']
    >>> few_and_many = {"picker::a::1000-pieces": Row(10), "picker::a::333333-pieces": Row(21)}
    >>> measure({}, lambda names: asked.append(names) or few_and_many) and asked[-1]
    ['picker::a::1000-pieces', 'picker::a::333333-pieces']
    """
    rows = run([])
    steep = too_steep(rows)
    # A ratio is of two rows: both get their second try.
    bad = {*worse(baseline, rows), *steep, *map(few, steep)}
    return better_of(rows, run(sorted(bad))) if bad else rows


def gone(baseline, rows):
    """
    >>> gone({"a": Row(1), "b": Row(1)}, {"b": Row(1)})
    ['a']
    """
    return [name for name in baseline if name not in rows]


def markdown(rows):
    """
    >>> rows = {"p::1000-pieces": Row(1500, "2 MB/s"), "p::5000-pieces": Row(3000)}
    >>> print(markdown(rows))
    | | median | per second | × 1,000 pieces |
    |---|---|---|---|
    | `p::1000-pieces` | 1.50 µs | 2 MB/s |  |
    | `p::5000-pieces` | 3.00 µs |  | 2.00 |
    >>> read_markdown(markdown(rows)) == rows
    True
    """
    lines = ["| | median | per second | × 1,000 pieces |", "|---|---|---|---|"]
    for name, row in rows.items():
        steep = ratio(name, rows)
        lines.append(f"| `{name}` | {show_time(row.ns)} | {row.rate} | {'' if steep is None else f'{steep:.2f}'} |")
    return "\n".join(lines)


def read_markdown(text):
    """The rows of a table that :func:`markdown` made."""
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 6 and cells[1].startswith("`"):
            rows[cells[1].strip("`")] = Row(parse_time(cells[2]), cells[3])
    return rows


def section(document):
    """What stands between the markers.

    >>> section(f"a {BEGIN} b {END} c")
    ' b '
    >>> section("nothing")
    Traceback (most recent call last):
    SystemExit: docs/BENCHMARKS.md has no markers for the micro-benchmarks
    """
    before, _, rest = document.partition(BEGIN)
    inside, end, _ = rest.partition(END)
    if not end:
        sys.exit("docs/BENCHMARKS.md has no markers for the micro-benchmarks")
    return inside


def replace_section(document, inside):
    """
    >>> replace_section(f"a {BEGIN} b {END} c", " x ") == f"a {BEGIN} x {END} c"
    True
    """
    return document.replace(BEGIN + section(document) + END, BEGIN + inside + END)


def table(baseline, rows):
    """For a person: each row beside its baseline.

    >>> print(table({"p::1000-pieces": Row(1000)}, {"p::1000-pieces": Row(1500), "p::2-pieces": Row(30, "2 B/s")}))
                         now  baseline  change  × 1,000 pieces  per second
    p::1000-pieces   1.50 µs   1.00 µs   +50 %
    p::2-pieces      30.0 ns                              0.02  2 B/s
    """
    width = max(map(len, rows), default=0)
    lines = [f"{'':{width}}  {'now':>8}  {'baseline':>8}  change  × 1,000 pieces  per second"]
    for name, row in rows.items():
        old, steep = baseline.get(name), ratio(name, rows)
        change = f"{round((row.ns / old.ns - 1) * 100):+d} %" if old else ""
        cells = [f"{show_time(row.ns):>8}", f"{show_time(old.ns) if old else '':>8}", f"{change:>6}"]
        cells += [f"{'' if steep is None else f'{steep:.2f}':>14}", row.rate]
        lines.append("  ".join([f"{name:{width}}", *cells]).rstrip())
    return "\n".join(lines)


def machine():
    model = "unknown processor"
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{model}, {os.cpu_count()} cores, Linux {platform.release()}"


def runner(program, filters):
    def run(names):
        """The rows of these names, or those of the filters."""
        # Names are matched against the path with the benchmark's own name before it.
        which = ["--exact", *(f"micro::{name}" for name in names)] if names else filters
        done = subprocess.run([program, "--bench", "--color", "never", *which], stdout=subprocess.PIPE, text=True)
        rows = parse(done.stdout)
        if done.returncode != 0 or not rows:
            sys.exit(f"the benchmarks failed or nothing matches:\n{done.stdout}")
        return rows

    return run


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("filters", nargs="*", metavar="FILTER", help="only rows whose names match")
    options.add_argument("--program", help="the benchmarks, built; scripts/micro builds them")
    options.add_argument("--save", action="store_true", help="write the baseline: the better of two runs")
    options.add_argument("--self-test", action="store_true", help="check this script")
    chosen = options.parse_args()
    if chosen.self_test:
        sys.exit(1 if doctest.testmod().failed else 0)
    if not chosen.program:
        options.error("--program is missing; scripts/micro gives it")
    if chosen.save and chosen.filters:
        options.error("a baseline has all rows: no filters with --save")
    run = runner(chosen.program, chosen.filters)
    document = DOCUMENT.read_text()
    text = section(document)
    baseline = read_markdown(text)
    if chosen.save:
        rows = better_of(run([]), run([]))
        made = f"`scripts/micro --save`, {datetime.date.today()}, on {machine()}. The better of two runs."
        DOCUMENT.write_text(replace_section(document, f"\n{made}\n\n{markdown(rows)}\n"))
        print(table(baseline, rows))
        return
    if baseline and machine() not in text:
        print(f"note: the baseline is another machine's; this is {machine()}", file=sys.stderr)
    if os.getloadavg()[0] > os.cpu_count():
        print("note: the machine is busy; calls that take milliseconds look slower than they are", file=sys.stderr)
    rows = measure(baseline, run)
    print(table(baseline, rows))
    bad = [f"worse by more than a quarter: {name}" for name in worse(baseline, rows)]
    bad += [f"takes more than {RATIO:g} × of {FEW:,} pieces: {name}" for name in too_steep(rows)]
    if not chosen.filters:
        bad += [f"not measured any more, run scripts/micro --save: {name}" for name in gone(baseline, rows)]
    print("\n".join(bad) or "nothing got worse")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
