"""Measurements of whole files: cold and warm reading, what was fetched for it, memory with many peers, and a torrent of
very many pieces. Each function measures one client once and adds its figures.
"""

import random
import shutil
import statistics
import time

from .tools import MIB, Failed, Watch, await_state, forget_pages, memory_mib, read_through, same

# How long after a read late blocks may still be counted by the seeders.
SETTLE = 0.3
IDLE_SECONDS = 10
HUGE_READ_LIMIT = 15
RANDOM_READS = 200


def sequential(results, client, size):
    """A cold read in order with an empty cache, then the same again, warm and less so. `size` in bytes."""
    who, seeders = client.name, client.swarm.peers
    before = seeders.uploaded()
    with client:
        results.add("ready, s", who, client.ready)
        reader = client.reader()
        with Watch(client.pid) as memory, reader.stream() as stream:
            cold = read_through(stream, size)
            cpu = client.cpu()
        gib = size / (1024 * MIB)
        results.add("cold, MiB/s", who, size / MIB / cold)
        results.add("CPU, s/GiB", who, cpu / gib)
        results.add("anonymous memory, peak, MiB", who, memory.peak)
        reader.close()
        if size < client.swarm.torrent.size:
            return
        time.sleep(SETTLE)
        results.add("fetched ÷ read", who, (seeders.uploaded() - before) / size)
        again(results, client, size)
        begin = time.monotonic()
        client.stop()
        results.add("stop, s", who, time.monotonic() - begin)


def again(results, client, size):
    def once(row):
        with client.reader().stream() as stream:
            results.add(row, client.name, size / MIB / read_through(stream, size))

    once("again, MiB/s")
    path = getattr(client, "path", None)
    if path:
        forget_pages(path)
        once("again without the reader's page cache, MiB/s")
        if not same(path, client.swarm.torrent.content):
            raise SystemExit(f"{client.name}: the mount's bytes differ from the source's")
        forget_pages(path)
    forget_pages(client.stored())
    once("again without any page cache, MiB/s")


def to_disk(results, client, size):
    with client:
        with Watch(client.pid) as memory:
            seconds, cpu = client.await_done()
        if not same(client.folder / client.swarm.torrent.file, client.swarm.torrent.content):
            raise SystemExit("libtorrent's bytes differ from the source's")
    results.add("cold, MiB/s", client.name, size / MIB / seconds)
    results.add("CPU, s/GiB", client.name, cpu / (size / (1024 * MIB)))
    results.add("anonymous memory, peak, MiB", client.name, memory.peak)


def cat(results, client, size):
    with client, Watch(client.pid) as memory:
        seconds = read_through(client.process.stdout, size)
        cpu = client.cpu()
    results.add("cold, MiB/s", client.name, size / MIB / seconds)
    results.add("CPU, s/GiB", client.name, cpu / (size / (1024 * MIB)))
    results.add("anonymous memory, peak, MiB", client.name, memory.peak)


def plain(results, torrent, aside):
    """The content as a plain file, read the same way: a copy, since the pages of what the seeders map can't be dropped."""
    if not aside.exists():
        shutil.copyfile(torrent.content, aside)

    def once(row):
        with open(aside, "rb", buffering=0) as stream:
            results.add(row, "plain file", torrent.size / MIB / read_through(stream, torrent.size))

    forget_pages(aside)
    once("again without any page cache, MiB/s")
    once("again, MiB/s")


def random_reads(results, client, seed):
    """Small reads all over the file, each of which needs a piece; who read them asked for nothing else."""
    torrent, seeders = client.swarm.torrent, client.swarm.peers
    source = random.Random(seed)
    places = [4096 * source.randrange(torrent.size // 4096) for _ in range(RANDOM_READS)]
    before = seeders.uploaded()
    with client:
        reader = client.reader()
        times = []
        for place in places:
            begin = time.monotonic()
            reader.at(place, 4096)
            times.append(time.monotonic() - begin)
        time.sleep(SETTLE)
        reader.close()
    touched = len({place // torrent.piece for place in places}) * torrent.piece
    results.add("fetched ÷ pieces touched", client.name, (seeders.uploaded() - before) / touched)
    results.add("random read, s", client.name, statistics.median(times))


def huge(results, client, idle):
    """A torrent with very many pieces: ready, first read, memory, and with `idle` what doing nothing costs."""
    who, torrent, lights = client.name, client.swarm.torrent, client.swarm.peers
    with client:
        results.add("huge ready", who, client.ready)
        middle = torrent.pieces // 2
        begin = time.monotonic()
        try:
            reader = client.reader(HUGE_READ_LIMIT)
            if not reader.at(middle * torrent.piece, 4096).startswith(f"piece {middle}\n".encode()):
                raise SystemExit(f"{who}: the bytes of piece {middle} are wrong")
            results.add("huge first", who, time.monotonic() - begin)
            reader.close()
        finally:
            results.add("huge memory", who, memory_mib(client.pid, "VmRSS"))
            results.add("huge anonymous", who, memory_mib(client.pid))
        if not idle:
            return
        wanted = len(lights.addresses)
        try:
            await_state("connections", 10, lambda: lights.connections() >= wanted)
        except Failed:
            # The row of connected peers tells.
            pass
        # What connecting has left to do.
        time.sleep(1)
        before = client.cpu()
        time.sleep(IDLE_SECONDS)
        results.add("huge idle", who, (client.cpu() - before) / IDLE_SECONDS * 100)
        results.add("huge peers", who, lights.connections())


def many_peers(results, client, size):
    """Reading at line rate from many peers: what it takes in memory."""
    with client:
        reader = client.reader()
        with Watch(client.pid) as memory, reader.stream() as stream:
            # Early: whoever has everything lets its peers go, however far the reader is.
            first = read_through(stream, size // 4)
            peers = client.swarm.peers.connections()
            second = read_through(stream, size - size // 4)
        reader.close()
    results.add("many cold", client.name, size / MIB / (first + second))
    results.add("many memory", client.name, memory.peak)
    results.add("many peers", client.name, peers)
