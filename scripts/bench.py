"""Measures torrentfs beside libtorrent, in turns, and writes the table into docs/BENCHMARKS.md.

Content is random, so nothing compresses it; seeders are libtorrent with uTP offered, one address each; every cold run
begins with an empty cache folder. Medians, with the smallest and the largest in brackets.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PEERS = ROOT / "tests" / "peers"
DOCUMENT = ROOT / "docs" / "BENCHMARKS.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
MIB = 1 << 20
TICKS = os.sysconf("SC_CLK_TCK")
# One read of the sequential reader: large enough that its own system calls cost nothing.
CHUNK = MIB


def run_python(script, *args, **more):
    return subprocess.Popen([sys.executable, PEERS / script, *map(str, args)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **more)


def make_content(folder, size):
    """A file of random bytes and its torrent, in pieces of 1 MiB."""
    data, torrent = folder / "data", folder / "bench.torrent"
    data.mkdir()
    source = random.Random(1)
    with open(data / "bench.bin", "wb") as file:
        for _ in range(size):
            file.write(source.randbytes(MIB))
    made = run_python("mktorrent.py", data / "bench.bin", torrent, "--piece-size", MIB)
    described, _ = made.communicate(timeout=600)
    if made.returncode != 0:
        sys.exit("mktorrent.py failed")
    return data, torrent, json.loads(described)


def start_seeders(torrent, data, count):
    seeders, addresses = [], []
    for number in range(count):
        ip = f"127.0.0.{2 + number}"
        seeder = run_python("seeder.py", torrent, data, "--listen", f"{ip}:0")
        seeders.append(seeder)
        line = seeder.stdout.readline().split()
        if line[:1] != ["ready"]:
            sys.exit(f"a seeder didn't start: {line}")
        addresses.append(f"{ip}:{line[1]}")
    return seeders, addresses


def cpu_seconds(pid):
    """User and system time of a process and its threads so far."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def anonymous_mib(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return 0.0


def read_through(path):
    """Reads a file from begin to end. Returns the seconds it took and how many bytes there were."""
    buffer = memoryview(bytearray(CHUNK))
    start, total = time.monotonic(), 0
    with open(path, "rb", buffering=0) as file:
        while got := file.readinto(buffer):
            total += got
    return time.monotonic() - start, total


def same(one, other):
    with open(one, "rb", buffering=0) as left, open(other, "rb", buffering=0) as right:
        while True:
            a, b = left.read(CHUNK), right.read(CHUNK)
            if a != b:
                return False
            if not a:
                return True


def forget_pages(path):
    """Drops a file's pages from the page cache, as far as the kernel follows."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def is_mounted(point):
    return any(line.split()[4] == str(point) for line in open("/proc/self/mountinfo"))


def await_state(what, limit, check):
    end = time.monotonic() + limit
    while not check():
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.002)


def measure_torrentfs(program, torrent, addresses, data, size, folder):
    """One cold run through the mount, and the re-reads after it."""
    point, cache = folder / "mnt", folder / "cache"
    point.mkdir()
    peers = [part for address in addresses for part in ("--peer", address)]
    command = [program, "mount", "--cache-dir", cache, "--listen", "127.0.0.1:0", "--no-dht", "--no-lsd"]
    command += ["--no-port-mapping", *peers, torrent, point]
    start = time.monotonic()
    with open(folder / "log", "wb") as log:
        mount = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        path = point / "bench.bin"

        def there():
            if mount.poll() is not None:
                raise ChildProcessError((folder / "log").read_text())
            return is_mounted(point) and path.exists()

        await_state("the mount", 30, there)
        ready = time.monotonic() - start
        cold, total = read_through(path)
        if total != size * MIB:
            sys.exit(f"read {total} bytes of {size * MIB}")
        cpu = cpu_seconds(mount.pid)
        memory = anonymous_mib(mount.pid)
        warm, _ = read_through(path)
        forget_pages(path)
        dropped, _ = read_through(path)
        if not same(path, data / "bench.bin"):
            sys.exit("the mount's bytes differ from the source's")
        begin = time.monotonic()
        mount.send_signal(signal.SIGTERM)
        if mount.wait(30) != 0:
            sys.exit(f"torrentfs ended with {mount.returncode}")
        stop = time.monotonic() - begin
    finally:
        if mount.poll() is None:
            mount.kill()
            mount.wait()
        if is_mounted(point):
            subprocess.run(["umount", "-l", point], check=False)
        shutil.rmtree(cache, ignore_errors=True)
    gib = size / 1024
    return {
        "ready, s": ready,
        "cold, MiB/s": size / cold,
        "CPU, s/GiB": cpu / gib,
        "anonymous memory, MiB": memory,
        "again, MiB/s": size / warm,
        "again without the mount's page cache, MiB/s": size / dropped,
        "stop, s": stop,
    }


def measure_libtorrent(torrent, addresses, data, size, folder):
    """libtorrent downloading everything to disk from the same seeders."""
    peers = [part for address in addresses for part in ("--peer", address)]
    # The rival at its best: over TCP and without encryption, as we fetch too.
    leecher = run_python("leecher.py", torrent, folder, *peers, "--limit", 300, "--no-utp", "--plain")
    line = leecher.stdout.readline().split()
    leecher.stdin.close()
    leecher.wait(30)
    if line[:1] != ["done"]:
        sys.exit(f"libtorrent: {line}")
    if not same(folder / "bench.bin", data / "bench.bin"):
        sys.exit("libtorrent's bytes differ from the source's")
    return {"cold, MiB/s": size / float(line[1]), "CPU, s/GiB": float(line[2]) / (size / 1024)}


def measure_plain(data, size):
    path = data / "bench.bin"
    read_through(path)
    warm, _ = read_through(path)
    return {"again, MiB/s": size / warm}


def shown(values):
    if not values:
        return ""
    digits = 2 if statistics.median(values) < 20 else 0
    middle, low, high = (f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low}–{high})"


def table(results):
    rows = list(results["torrentfs"][0])
    lines = ["| | " + " | ".join(results) + " |", "|---" * (len(results) + 1) + "|"]
    for row in rows:
        cells = [shown([run[row] for run in runs if row in run]) for runs in results.values()]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def machine():
    model = "unknown processor"
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    memory = int(open("/proc/meminfo").readline().split()[1]) / (1 << 20)
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, Linux {platform.release()}"


def write(text):
    document = DOCUMENT.read_text()
    before, rest = document.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    DOCUMENT.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", required=True)
    parser.add_argument("--size", type=int, default=1024, help="MiB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeders", type=int, default=4)
    parser.add_argument("--no-write", action="store_true", help="print the table only")
    args = parser.parse_args()

    results = {"torrentfs": [], "libtorrent to disk": [], "plain file": []}
    seeders = []
    with tempfile.TemporaryDirectory(prefix="tfs-bench-") as name:
        folder = pathlib.Path(name).resolve()
        data, torrent, _ = make_content(folder, args.size)
        try:
            seeders, addresses = start_seeders(torrent, data, args.seeders)
            for number in range(args.rounds):
                for kind in results:
                    aside = folder / f"{number}-{kind.replace(' ', '-')}"
                    aside.mkdir()
                    if kind == "torrentfs":
                        run = measure_torrentfs(args.program, torrent, addresses, data, args.size, aside)
                    elif kind == "plain file":
                        run = measure_plain(data, args.size)
                    else:
                        run = measure_libtorrent(torrent, addresses, data, args.size, aside)
                    results[kind].append(run)
                    print(f"round {number + 1}, {kind}: " + ", ".join(f"{key} {value:.2f}" for key, value in run.items()), flush=True)
                    shutil.rmtree(aside, ignore_errors=True)
        finally:
            for seeder in seeders:
                seeder.stdin.close()
                seeder.wait(30)

    options = f" --size {args.size} --rounds {args.rounds} --seeders {args.seeders}"
    text = (
        f"`scripts/bench{options}`, {datetime.date.today().isoformat()}, on {machine()}. "
        f"{args.size} MiB of random data in pieces of 1 MiB, {args.seeders} libtorrent seeders on loopback; "
        f"median (smallest–largest) of {args.rounds}.\n\n{table(results)}"
    )
    print("\n" + text)
    if not args.no_write:
        write(text)


if __name__ == "__main__":
    main()
