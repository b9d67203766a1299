"""Figures collected, judged and shown: `Results` holds them, `SECTIONS` says which rows there are and what each aims at,
`tables` makes the document's text.

A figure stands under (row, who). Each row shows the median with the smallest and the largest, or one statistic of the
pooled figures. A target is a ratio within the run: it is called met or missed from the medians, and nothing is rounded
in anybody's favour.
"""

import dataclasses
import math
import statistics
import typing

OURS = "torrentfs"
RIVALS = ("libtorrent to disk", "rqbit", "btfs")
WHO = (OURS, "torrentfs cat", *RIVALS, "curl", "curl, then SHA-1", "SHA-1, one thread", "plain file", "sha1sum")


class Results:
    def __init__(self):
        self.values = {}
        self.failures = {}

    def add(self, row, who, *values):
        self.values.setdefault((row, who), []).extend(values)

    def fail(self, row, who, reason):
        self.failures[(row, who)] = reason

    def get(self, row, who):
        return self.values.get((row, who), [])

    def middle(self, row, who):
        values = self.get(row, who)
        return statistics.median(values) if values else None

    def best_rival(self, row, best):
        """The best median among the rivals and whose it is."""
        found = [(self.middle(row, who), who) for who in RIVALS if self.get(row, who)]
        return best(found) if found else None


def p99(values):
    """The nearest rank; of fewer than a hundred figures it is the worst."""
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]


def number(value):
    size = abs(value)
    return f"{value:,.0f}" if size >= 20 else f"{value:.2f}" if size >= 0.1 or not size else f"{value:.3f}"


def spread(values):
    return f"{number(statistics.median(values))} ({number(min(values))}–{number(max(values))})"


def worst(values):
    return f"{number(p99(values))} (of {len(values)})"


def verdict(text, met):
    return f"{text}: {'met' if met else '**missed**'}"


def at_most(bound, unit="", statistic=statistics.median):
    """A target that a statistic of our figures stays within a bound."""

    def judge(results, row):
        values = results.get(row, OURS)
        if not values:
            return ""
        ours = statistic(values)
        return verdict(f"≤ {bound:.4g}{unit}: {number(ours / bound)} of it", ours <= bound)

    return judge


def times_floor(factor, floor, statistic=statistics.median):
    """A target in multiples of a physical floor in seconds."""

    def judge(results, row):
        values = results.get(row, OURS)
        if not values:
            return ""
        ratio = statistic(values) / floor
        return verdict(f"≤ {factor} × {floor:.4g} s: {number(ratio)} ×", ratio <= factor)

    return judge


def beside_rivals(factor, more):
    """A target beside the best rival of the run: at least `factor` times as much, or at most."""

    def judge(results, row):
        ours = results.middle(row, OURS)
        best = results.best_rival(row, max if more else min)
        if ours is None or best is None:
            return ""
        ratio = ours / best[0]
        sign, met = ("≥", ratio >= factor) if more else ("≤", ratio <= factor)
        return verdict(f"{sign} {factor} × {best[1]}: {number(ratio)} ×", met)

    return judge


def beside_plain(factor, more):
    """A target beside the plain file of the run: at least `factor` times as much, or at most."""

    def judge(results, row):
        ours, plain = results.middle(row, OURS), results.middle(row, "plain file")
        if ours is None or plain is None:
            return ""
        ratio = ours / plain
        sign, met = ("≥", ratio >= factor) if more else ("≤", ratio <= factor)
        return verdict(f"{sign} {factor} × plain: {number(ratio)} ×", met)

    return judge


def beside_curl(factor):
    """At least this much of curl's rate, or as fast as one thread hashes."""

    def judge(results, row):
        ours, curl, hashing = (results.middle(row, who) for who in (OURS, "curl", "SHA-1, one thread"))
        if ours is None or curl is None:
            return ""
        ratio = ours / curl
        met = ratio >= factor or (hashing is not None and ours >= hashing)
        hashed = results.middle(row, "curl, then SHA-1")
        beside = f" ({number(ours / hashed)} × curl, then SHA-1)" if hashed else ""
        return verdict(f"≥ {factor} × curl, or as SHA-1: {number(ratio)} ×{beside}", met)

    return judge


@dataclasses.dataclass
class Row:
    """One line of a table. `source` is the key of its figures, by default the label."""

    label: str
    source: str = ""
    show: typing.Callable = spread
    target: typing.Callable = lambda *_: ""

    @property
    def key(self):
        return self.source or self.label


# What a seek costs at least at 4 × 2 MiB/s: a piece of 1 MiB at the swarm's rate; round trips on loopback are nothing.
SEEK_FLOOR = 1 / 8
# A player's start at 6 MiB/s: 1 s and a piece.
START_LIMIT = 1 + 1 / 6
# RIVALS: webtorrent, the best measured with libtorrent's limiter, needs 1.07 s.
LIMITER_SEEK = 1.07 / 2

SECTIONS = [
    (
        "Whole file, unlimited",
        [
            Row("ready, s"),
            Row("cold, MiB/s", target=beside_rivals(1.2, True)),
            Row("CPU, s/GiB", target=beside_rivals(0.7, False)),
            Row("anonymous memory, peak, MiB", target=at_most(64, " MiB")),
            Row("fetched ÷ read", target=at_most(1.02)),
            Row("again, MiB/s"),
            Row("again without the reader's page cache, MiB/s"),
            Row("again without any page cache, MiB/s"),
            Row("stop, s"),
        ],
    ),
    (
        "First byte, unlimited",
        [
            Row("magnet: start to first byte, s", target=beside_rivals(1, False)),
            Row("`.torrent`: start to first byte, s", target=beside_rivals(1, False)),
            Row("first byte in the middle after that, s", target=beside_rivals(1, False)),
        ],
    ),
    (
        "Seeks to a missing place",
        [
            Row("unlimited, s", "seek unlimited", target=beside_rivals(1, False)),
            Row("unlimited, p99, s", "seek unlimited", worst),
            Row("smooth relay, idle, s", "seek relay idle", target=times_floor(1.3, SEEK_FLOOR)),
            Row("smooth relay, idle, p99, s", "seek relay idle", worst, times_floor(2, SEEK_FLOOR, p99)),
            Row("smooth relay, during a bulk read, s", "seek relay bulk"),
            Row("smooth relay, during a bulk read, p99, s", "seek relay bulk", worst),
            Row("the same, in flight at the seek, KiB", "seek relay flight"),
            Row("the same, ÷ (floor + in flight ÷ rate)", "seek relay ratio", target=at_most(1.3)),
            Row("the same, p99", "seek relay ratio", worst, at_most(2, statistic=p99)),
            Row("libtorrent's limiter, idle, s", "seek limiter idle", target=at_most(LIMITER_SEEK, " s")),
            Row("libtorrent's limiter, idle, p99, s", "seek limiter idle", worst),
            Row("libtorrent's limiter, during a bulk read, s", "seek limiter bulk"),
            Row("libtorrent's limiter, during a bulk read, p99, s", "seek limiter bulk", worst),
        ],
    ),
    (
        "A player at 4 MiB/s from 6 MiB/s, 30 s",
        [
            Row("smooth relay: start, s", "player relay start", target=at_most(START_LIMIT, " s")),
            Row("smooth relay: stalls", "player relay stalls", target=lambda *given: none_of(*given)),
            Row("smooth relay: stalled in all, s", "player relay stalled"),
            Row("libtorrent's limiter: start, s", "player limiter start", target=at_most(START_LIMIT, " s")),
            Row("libtorrent's limiter: stalls", "player limiter stalls", target=lambda *given: none_of(*given)),
            Row("libtorrent's limiter: stalled in all, s", "player limiter stalled"),
        ],
    ),
    (
        "200 random reads of 4 KiB",
        [
            Row("fetched ÷ pieces touched", target=at_most(1)),
            Row("median of a read, s", "random read, s"),
        ],
    ),
    (
        "333,333 pieces, 50 light peers",
        [
            Row("ready from a `.torrent`, s", "huge ready", target=at_most(1, " s")),
            Row("first read, s", "huge first"),
            Row("resident memory after it, MiB", "huge memory", target=at_most(48, " MiB")),
            Row("of it anonymous, MiB", "huge anonymous"),
            Row("idle CPU over 10 s, % of a core", "huge idle", target=at_most(0.2, " %")),
            Row("connected peers meanwhile", "huge peers"),
        ],
    ),
    (
        "80 light peers, unlimited",
        [
            Row("cold, MiB/s", "many cold"),
            Row("anonymous memory, peak, MiB", "many memory", target=at_most(64, " MiB")),
            Row("connected peers", "many peers"),
        ],
    ),
    (
        "What is kept",
        [
            Row("checking what is there, warm, MiB/s", "check, warm, MiB/s"),
            Row("the same, CPU s/GiB", "check, CPU s/GiB"),
            Row("checking, pages dropped before, MiB/s", "check, cold, MiB/s"),
            Row("whole file through `--cache-size 128M`, MiB/s", "bounded, MiB/s"),
            Row("the same, CPU s/GiB", "bounded, CPU s/GiB"),
            Row("anonymous memory, peak, MiB", "bounded, memory", target=at_most(64, " MiB")),
        ],
    ),
    (
        "What is here, as a disk",
        [
            Row("a complete file again, warm, MiB/s", "here: warm, MiB/s", target=beside_plain(0.95, True)),
            Row("the same, pages of the mount dropped, MiB/s", "here: reader's pages dropped, MiB/s"),
            Row("random reads of 4 KiB, warm, µs", "here: random 4 KiB, µs"),
            Row("random reads of 128 KiB, warm, µs", "here: random 128 KiB, µs"),
            Row("`ls -lR` of 10,000 files, cold, s", "list 10000, cold, s"),
            Row("the same, warm, s", "list 10000, warm, s", target=at_most(0.1, " s")),
            Row("`ls -lR` of 100,000 files, cold, s", "list 100000, cold, s"),
            Row("the same, warm, s", "list 100000, warm, s", target=at_most(1, " s")),
            Row("opening and reading a small file of 10,000, first, µs", "open 10000, first, µs"),
            Row("the same, again, µs", "open 10000, again, µs"),
        ],
    ),
    (
        "From nginx alone",
        [
            Row("cold, MiB/s", "web cold", target=beside_curl(0.8)),
            Row("CPU, s/GiB", "web CPU"),
            Row("anonymous memory, peak, MiB", "web memory", target=at_most(64, " MiB")),
            Row("64 KiB at a random place, s", "web seek"),
            Row("the same, p99, s", "web seek", worst),
            Row("the whole piece of it, s", "web seek, piece"),
        ],
    ),
    (
        "Each way to the same seeders",
        [
            Row("plain, over TCP, MiB/s"),
            Row("RC4, over TCP, MiB/s", target=beside_rivals(1, True)),
            Row("plain, over uTP, MiB/s", target=beside_rivals(1, True)),
            Row("RC4, over uTP, MiB/s", target=beside_rivals(1, True)),
            Row("plain, over TCP, CPU, s/GiB"),
            Row("RC4, over TCP, CPU, s/GiB"),
            Row("plain, over uTP, CPU, s/GiB"),
            Row("RC4, over uTP, CPU, s/GiB"),
        ],
    ),
]


def none_of(results, row):
    values = results.get(row, OURS)
    return verdict("none", not any(values)) if values else ""


def tables(results):
    parts = []
    for title, rows in SECTIONS:
        found = [row for row in rows if any((row.key, who) in results.values or (row.key, who) in results.failures for who in WHO)]
        if not found:
            continue
        columns = [who for who in WHO if any((row.key, who) in results.values or (row.key, who) in results.failures for row in found)]
        lines = [f"| {title} | " + " | ".join(columns) + " | target |", "|---" * (len(columns) + 2) + "|"]
        for row in found:
            cells = []
            for who in columns:
                values = results.get(row.key, who)
                failed = (row.key, who) in results.failures
                cells.append(row.show(values) if values else "failed" if failed else "")
                if values and failed:
                    cells[-1] += ", also failed"
            lines.append(f"| {row.label} | " + " | ".join(cells) + f" | {row.target(results, row.key)} |")
        parts.append("\n".join(lines))
    failures = sorted({f"{who}, {row}: {reason}" for (row, who), reason in results.failures.items()})
    if failures:
        parts.append("What failed:\n\n" + "\n".join(f"- {line}" for line in failures))
    return "\n\n".join(parts)
