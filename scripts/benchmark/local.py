"""Measurements of what is here: a complete file read again in order and at random, folders listed, small files opened,
beside the same in a plain folder. Each function measures once and adds its figures.

Who is measured has everything before it counts; what fetching costs stands in other rows.
"""

import os
import pathlib
import random
import shutil
import stat
import statistics
import subprocess
import time

from .tools import CHUNK, MIB, Failed, forget_pages, read_through

# Enough that one is over in well under a second where it is slow, and takes milliseconds where it is quick.
SMALL_READS, LARGE_READS = 20_000, 4_000
SMALL, LARGE = 4096, 128 * 1024
LIST_LIMIT = 120
PASSES = 5


def repeated(results, readers, size):
    """A complete file, by each of the readers (a name, a path, and where it is stored if that is elsewhere): in order, warm
    and with the reader's pages dropped; then at random places. They take turns, since what the machine gives changes
    from one second to the next."""

    def in_turn(row, once):
        """The median of some passes: the first ones after the pages came are the kernel's own affair."""
        figures = {who: [] for who, _, _ in readers}
        for _ in range(PASSES):
            for who, path, _ in readers:
                figures[who].append(once(path))
        for who, values in figures.items():
            results.add(row, who, statistics.median(values))

    for _, path, _ in readers:
        once_through(path, size)
    in_turn("here: warm, MiB/s", lambda path: size / MIB / once_through(path, size))
    for _, path, stored in readers:
        forget_pages(path)
        if stored:
            # In the page cache of the disk's file system, whoever put it there before.
            once_through(stored, size)
    in_turn("here: reader's pages dropped, MiB/s", lambda path: size / MIB / once_through(path, size))
    for length, count, row in ((SMALL, SMALL_READS, "here: random 4 KiB, µs"), (LARGE, LARGE_READS, "here: random 128 KiB, µs")):
        source = random.Random(length)
        places = [length * source.randrange(size // length) for _ in range(count)]
        in_turn(row, lambda path, length=length, places=places: at_random(path, length, places))


def at_random(path, length, places):
    """Microseconds for each read."""
    fd = os.open(path, os.O_RDONLY)
    try:
        buffer = [bytearray(length)]
        begin = time.perf_counter()
        for place in places:
            if os.preadv(fd, buffer, place) != length:
                raise Failed(f"a short read at {place}")
        return (time.perf_counter() - begin) / len(places) * 1e6
    finally:
        os.close(fd)


def once_through(path, size):
    """Seconds that it took."""
    with open(path, "rb", buffering=0) as stream:
        return read_through(stream, size)


def mounted(results, client, plain):
    """A client that has fetched all of its file, beside a copy of that at `plain`; without that, alone."""
    torrent = client.swarm.torrent
    with client:
        once_through(client.path, torrent.size)
        readers = [(client.name, client.path, client.stored())]
        if plain:
            if not plain.exists():
                shutil.copyfile(torrent.content, plain)
            readers.append(("plain file", plain, None))
        repeated(results, readers, torrent.size)


def make_tree(folder, count, folders, size):
    """`count` files of `size` bytes in so many folders."""
    for number in range(folders):
        place = folder / f"folder {number:04}"
        place.mkdir(parents=True)
        for file in range(number, count, folders):
            (place / f"a file of the benchmark, number {file:06}.bin").write_bytes(file.to_bytes(8, "little") * (size // 8))


def listed(results, who, folder, count, row):
    """`ls -lR`: once cold, as it comes, and then warm."""
    for state in ("cold", "warm"):
        begin = time.monotonic()
        made = subprocess.run(["ls", "-lR", folder], capture_output=True, timeout=LIST_LIMIT, check=False)
        seconds = time.monotonic() - begin
        lines = made.stdout.count(b".bin\n")
        if made.returncode or lines != count:
            raise Failed(f"{lines} files of {count} were listed: {made.stderr[-200:]}")
        results.add(f"{row}, {state}, s", who, seconds)


def opened(results, who, folder, row):
    """Opens, reads and closes each file below a folder."""
    paths = [pathlib.Path(place, name) for place, _, names in os.walk(folder) for name in names]
    buffer = bytearray(CHUNK)
    for state in ("first", "again"):
        begin = time.perf_counter()
        for path in paths:
            fd = os.open(path, os.O_RDONLY)
            if not stat.S_ISREG(os.fstat(fd).st_mode) or os.readv(fd, [buffer]) < 8:
                raise Failed(f"{path} can't be read")
            os.close(fd)
        results.add(f"{row}, {state}, µs", who, (time.perf_counter() - begin) / len(paths) * 1e6)


def tree(results, client, count, read):
    """Lists a torrent of very many files; with `read`, fetches them all and opens each."""
    with client:
        listed(results, client.name, client.path, count, f"list {count}")
        if read:
            for place, _, names in os.walk(client.path):
                for name in names:
                    pathlib.Path(place, name).read_bytes()
            opened(results, client.name, client.path, f"open {count}")


def plain_tree(results, folder, count, read):
    listed(results, "plain file", folder, count, f"list {count}")
    if read:
        opened(results, "plain file", folder, f"open {count}")
