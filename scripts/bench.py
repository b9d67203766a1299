"""Measures torrentfs beside other clients, in turns, and writes the tables into docs/BENCHMARKS.md.

Who serves and who is measured stands in `benchmark/`; here is only the order: for each round, for each row, everybody
in turn, so that a busy moment of the machine hits all of them. Every run begins with an empty cache folder.

    bench.py --program PATH [--rqbit PATH] [--btfs PATH] [--rounds N] [--rows a,c] [--size MIB] [--seeks N] [--no-write]

Rows: a whole file, b first byte, c seeks, d player, e random reads, f 333,333 pieces, g 80 peers,
h what is kept (checking, a bounded cache), i what is here (a complete file, folders, small files), k a webseed.
"""

import argparse
import contextlib
import datetime
import os
import pathlib
import shlex
import subprocess
import tempfile
import time

import libtorrent as lt

from benchmark import latency, local, report, storage, volume, ways, web
from benchmark.clients import Btfs, Cat, Rqbit, ToDisk, Torrentfs
from benchmark.swarm import Lights, Relays, Seeders, Swarm, Tracker, make_huge, make_many, make_random
from benchmark.tools import MIB, ROOT, Failed, freshen, machine

DOCUMENT = ROOT / "docs" / "BENCHMARKS.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
ROWS = "abcdefghikl"
SEEDERS = 4
SEEK_RATE = SEEDERS * 2 * MIB
PLAYER_SWARM = 6 * MIB
HUGE_PIECES = 333_333
HUGE_PEERS = 50
MANY_PEERS = 80
# btfs reads about 13 MiB/s, whatever the size.
BTFS_SHARE = 8
SEEK_PAUSE = 0.7
# A cold read through a mount fills twice the file's size of the page cache: what the mount shows, and what it stores.
FRESH = 2
# Files to list, with the bytes of each; so many of them are read as well.
MANY_FILES = {10_000: 4096, 100_000: 8}
READ_FILES = 10_000
# What btfs has to fetch before it can read it again.
BTFS_HERE = 64


class Bench:
    def __init__(self, args, folder):
        self.args, self.folder = args, folder
        self.results = report.Results()
        self.stack = contextlib.ExitStack()
        self.made = {}
        self.runs = 0
        self.tracker = self.kept(Tracker())
        self.torrent = make_random(folder, args.size)
        self.with_cat = Cat.is_there(args.program)

    def kept(self, thing):
        self.stack.callback(thing.stop)
        return thing

    def swarm(self, kind):
        """Swarms are started when a row first needs them, and live to the end."""
        if kind not in self.made:
            self.made[kind] = self.start_swarm(kind)
        return self.made[kind]

    def start_swarm(self, kind):
        if kind == "unlimited":
            return Swarm(self.torrent, self.kept(Seeders(self.torrent, SEEDERS, 0)), self.tracker)
        if kind == "limiter":
            seeders = Seeders(self.torrent, SEEDERS, 1, "--upload-limit", SEEK_RATE // SEEDERS)
            return Swarm(self.torrent, self.kept(seeders), self.tracker, SEEK_RATE)
        if kind == "relay":
            # Seeders of their own, behind a kernel buffer no larger than the relay's.
            seeders = self.kept(Seeders(self.torrent, SEEDERS, 2, "--send-buffer", 64 * 1024))
            relays = self.kept(Relays(seeders.addresses, 3, SEEK_RATE // SEEDERS))
            return Swarm(self.torrent, relays, self.tracker, SEEK_RATE)
        if kind == "many":
            return Swarm(self.torrent, self.kept(Lights(self.torrent, MANY_PEERS, os.cpu_count(), 4)), self.tracker)
        if kind in MANY_FILES:
            torrent = make_many(self.folder, kind, MANY_FILES[kind], local.make_tree)
            return Swarm(torrent, self.kept(Seeders(torrent, 1, 6)), self.tracker)
        if kind == "short":
            (self.folder / "short").mkdir()
            torrent = make_random(self.folder / "short", BTFS_HERE)
            return Swarm(torrent, self.kept(Seeders(torrent, 2, 7)), self.tracker)
        if kind in ways.WAYS:
            return Swarm(self.torrent, self.kept(Seeders(self.torrent, SEEDERS, 8 + ways.WAYS.index(kind), *kind.seeder)), self.tracker)
        if kind == "web":
            nginx = self.kept(web.Nginx(self.torrent.data, self.folder / "nginx"))
            return web.WebSwarm(self.torrent, nginx, self.folder)
        huge = make_huge(self.folder, HUGE_PIECES)
        return Swarm(huge, self.kept(Lights(huge, HUGE_PEERS, 1, 5)), self.tracker)

    def client(self, kind, swarm, **more):
        self.runs += 1
        program = {Torrentfs: self.args.program, Rqbit: self.args.rqbit, Btfs: self.args.btfs}[kind]
        return kind(program, swarm, self.folder / f"run{self.runs}", **more)

    def streamers(self, btfs=True):
        yield Torrentfs
        if self.args.rqbit:
            yield Rqbit
        if self.args.btfs and btfs:
            yield Btfs

    def measure(self, what, row, kind, function, *args):
        """One measurement of one client; what goes wrong costs its figures, not the run."""
        if row in ("cold, MiB/s", "web cold", "way"):
            freshen(self.folder / "fresh", FRESH * self.torrent.size)
        begin = time.monotonic()
        before = {key: len(values) for key, values in self.results.values.items()}
        try:
            function(self.results, *args)
            outcome = []
        except (Failed, OSError, subprocess.SubprocessError) as error:
            self.results.fail(row, kind.name, str(error))
            outcome = [f"FAILED: {error}"]
        for (key, who), values in self.results.values.items():
            new = values[before.get((key, who), 0) :]
            if new:
                outcome.append(f"{key} {' '.join(report.number(value) for value in new)}")
        print(f"{what}, {kind.name}, {time.monotonic() - begin:.1f} s: " + "; ".join(outcome), flush=True)

    def round(self, number):
        for row in self.args.rows:
            getattr(self, f"row_{row}")(number, f"round {number + 1}, {row}")

    def row_a(self, _number, what):
        size = self.torrent.size
        swarm = self.swarm("unlimited")
        for kind in self.streamers():
            part = size // BTFS_SHARE if kind is Btfs else size
            self.measure(what, "cold, MiB/s", kind, lambda results: volume.sequential(results, self.client(kind, swarm), part))
        self.runs += 1
        folder = self.folder / f"run{self.runs}"
        self.measure(what, "cold, MiB/s", ToDisk, lambda results: volume.to_disk(results, ToDisk(swarm, folder), size))
        if self.with_cat:
            aside = self.folder / f"run{self.runs}-cat"
            self.measure(
                what, "cold, MiB/s", Cat, lambda results: volume.cat(results, Cat(self.args.program, swarm, aside), size)
            )
        volume.plain(self.results, self.torrent, self.folder / "plain.bin")

    def row_b(self, _number, what):
        swarm = self.swarm("unlimited")
        for magnet, row in ((True, "magnet: start to first byte, s"), (False, "`.torrent`: start to first byte, s")):
            for kind in self.streamers():
                self.measure(
                    what, row, kind, lambda results: latency.first_byte(results, self.client(kind, swarm, magnet=magnet))
                )

    def row_c(self, number, what):
        swarm = self.swarm("unlimited")
        # The rivals need seconds for each: a few have to do. btfs beside a bulk read takes minutes.
        shares = {Torrentfs: self.args.seeks, Rqbit: max(1, self.args.seeks // 2), Btfs: max(1, self.args.seeks // 4)}
        for kind in self.streamers():
            self.measure(
                what + " unlimited", "seek unlimited", kind,
                lambda results: latency.seeks_unlimited(results, self.client(kind, swarm), number, shares[kind]),
            )
        for name in ("relay", "limiter"):
            swarm = self.swarm(name)
            swarm.set_rate(SEEK_RATE)
            for kind in self.streamers():
                self.measure(
                    f"{what} {name}", f"seek {name} idle", kind,
                    lambda results: latency.seeks(
                        results, self.client(kind, swarm), name, number, shares[kind], SEEK_PAUSE, kind is not Btfs
                    ),
                )

    def row_d(self, number, what):
        for name in ("relay", "limiter"):
            swarm = self.swarm(name)
            swarm.set_rate(PLAYER_SWARM)
            for kind in self.streamers(btfs=number == 0):
                self.measure(
                    f"{what} {name}", f"player {name} start", kind,
                    lambda results: latency.player(results, self.client(kind, swarm), name),
                )

    def row_e(self, number, what):
        swarm = self.swarm("unlimited")
        self.measure(
            what, "fetched ÷ pieces touched", Torrentfs,
            lambda results: volume.random_reads(results, self.client(Torrentfs, swarm), number),
        )

    def row_f(self, number, what):
        swarm = self.swarm("huge")
        for kind in self.streamers() if number == 0 else (Torrentfs,):
            self.measure(
                what, "huge first", kind,
                lambda results: volume.huge(results, self.client(kind, swarm), idle=kind is Torrentfs),
            )

    def row_g(self, _number, what):
        swarm = self.swarm("many")
        for kind in self.streamers(btfs=False):
            self.measure(
                what, "many cold", kind,
                lambda results: volume.many_peers(results, self.client(kind, swarm), self.torrent.size),
            )

    def row_h(self, _number, what):
        swarm = self.swarm("unlimited")
        self.measure(what, "check, warm, MiB/s", Torrentfs, lambda results: storage.verify(results, self.args.program, self.torrent))
        self.measure(what, "check, warm, MiB/s", Sha1sum, lambda results: storage.sums(results, self.torrent))
        self.measure(
            what, "bounded, MiB/s", Torrentfs, lambda results: storage.bounded(results, self.client(Torrentfs, swarm))
        )


    def row_i(self, number, what):
        row = "here: warm, MiB/s"
        aside = self.folder / "plain.bin"
        self.measure(
            what, row, Torrentfs, lambda results: local.mounted(results, self.client(Torrentfs, self.swarm("unlimited")), aside)
        )
        if self.args.btfs and number == 0:
            self.measure(what, row, Btfs, lambda results: local.mounted(results, self.client(Btfs, self.swarm("short")), None))
        for count in MANY_FILES:
            swarm, row, read = self.swarm(count), f"list {count}, cold, s", count <= READ_FILES
            folder = swarm.torrent.content
            kinds = [Torrentfs] + ([Btfs] if self.args.btfs and number == 0 else [])
            for kind in kinds:
                self.measure(what, row, kind, lambda results: local.tree(results, self.client(kind, swarm), count, read))
            self.measure(what, row, Plain, lambda results: local.plain_tree(results, folder, count, read))


    def row_k(self, number, what):
        swarm = self.swarm("web")
        self.measure(what, "web cold", Torrentfs, lambda results: web.mounted(results, self.client(Torrentfs, swarm)))
        self.runs += 1
        folder = self.folder / f"run{self.runs}"
        self.measure(what, "web cold", Curl, lambda results: web.curl(results, swarm, folder))
        aside = self.folder / f"run{self.runs}-leecher"
        self.measure(what, "web cold", ToDisk, lambda results: web.to_disk(results, ToDisk(swarm, aside)))
        self.measure(what, "web cold", Hashing, web.hashing)
        self.measure(what, "web seek", Torrentfs, lambda results: web.seeks(results, self.client(Torrentfs, swarm), number))
        self.measure(what, "web seek", Curl, lambda results: web.curl_seeks(results, swarm, number))
        aside = self.folder / f"run{self.runs}-seeks"
        self.measure(what, "web seek, piece", ToDisk, lambda results: web.libtorrent_seeks(results, swarm, aside, number))

    def row_l(self, _number, what):
        for way in ways.WAYS:
            swarm = self.swarm(way)
            self.measure(f"{what}, {way.name}", "way", Torrentfs, lambda results: ways.mounted(results, self.client(Torrentfs, swarm), way))
            self.runs += 1
            folder = self.folder / f"run{self.runs}"
            self.measure(f"{what}, {way.name}", "way", ToDisk, lambda results: ways.to_disk(results, ToDisk(swarm, folder), way))


class Sha1sum:
    name = "sha1sum"


class Curl:
    name = "curl"


class Hashing:
    name = "SHA-1, one thread"


class Plain:
    name = "plain file"


def version(name, program):
    """The line of a program's --version that names it."""
    if not program:
        return None
    try:
        made = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return name
    return next((line.replace(" version:", "") for line in made.stdout.splitlines() if line.startswith(name)), name)


def described(args, command):
    others = ", ".join(filter(None, [f"libtorrent {lt.version}", version("rqbit", args.rqbit), version("btfs", args.btfs)]))
    return (
        f"`{command}`, {datetime.date.today().isoformat()}, on {machine()}, beside {others}. {args.size} MiB of random data "
        f"in pieces of 1 MiB, {SEEDERS} libtorrent seeders on loopback; {args.rounds} rounds: median (smallest–largest)."
    )


def write(text):
    document = DOCUMENT.read_text()
    before, rest = document.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    DOCUMENT.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True)
    parser.add_argument("--rqbit", help="the rqbit to measure")
    parser.add_argument("--btfs", help="the btfs to measure")
    parser.add_argument("--command", default="scripts/bench", help="how this was called, for the document")
    parser.add_argument("--size", type=int, default=1024, help="MiB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", default=",".join(ROWS), help="which, as in a,c")
    parser.add_argument("--seeks", type=int, default=8, help="of torrentfs, in each round, from each state")
    parser.add_argument("--no-write", action="store_true", help="print the tables only")
    args = parser.parse_args()
    args.rows = [row for row in args.rows.split(",") if row]
    if unknown := [row for row in args.rows if row not in ROWS]:
        parser.error(f"no such row: {', '.join(unknown)}; there are {', '.join(ROWS)}")
    if args.size < 64 or args.rounds < 1 or args.seeks < 1:
        parser.error("--size is at least 64, --rounds and --seeks at least 1")
    return args


def main():
    args = arguments()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tfs-bench-") as name:
        bench = Bench(args, pathlib.Path(name).resolve())
        with bench.stack:
            for number in range(args.rounds):
                bench.round(number)
    text = f"{described(args, shlex.join(shlex.split(args.command)))}\n\n{report.tables(bench.results)}"
    print(f"\n{text}\n\ntook {(time.monotonic() - begin) / 60:.1f} minutes")
    if not args.no_write:
        write(text)


if __name__ == "__main__":
    main()
