"""Measurements of what is kept: checking what is there, beside `sha1sum` of the same bytes, and reading through a bound.
Each function measures once and adds its figures.
"""

import json
import pathlib
import resource
import subprocess
import tempfile
import time

from .tools import MIB, Failed, Watch, forget_pages, read_through

CHECK_LIMIT = 300
# What the cache may hold while a larger file is read through it.
BOUND_MIB = 128


def timed(command):
    """Seconds and processor seconds of a command that has to succeed, and what it printed."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    made = subprocess.run(list(map(str, command)), capture_output=True, timeout=CHECK_LIMIT, check=False)
    seconds, after = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if made.returncode:
        raise Failed(f"{command[0]} ended with {made.returncode}: {made.stderr.decode(errors='replace')[-300:]}")
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, made.stdout


def check(results, who, command, torrent, cold):
    """One pass over the content: from the disk, or from the page cache."""
    if cold:
        forget_pages(torrent.content)
    seconds, cpu, said = timed(command)
    row = "check, cold" if cold else "check, warm"
    results.add(f"{row}, MiB/s", who, torrent.size / MIB / seconds)
    if not cold:
        results.add("check, CPU s/GiB", who, cpu / (torrent.size / (1024 * MIB)))
    return said


def verify(results, program, torrent):
    """`torrentfs verify` of the seeders' data, where it lies."""
    for cold in (True, False):
        with tempfile.TemporaryDirectory() as cache:
            folder = pathlib.Path(torrent.content).parent
            command = [program, "verify", "--cache-dir", cache, "--data", folder, "--read-only", "--json", torrent.path]
            report = json.loads(check(results, "torrentfs", command, torrent, cold))
            if report["good"]["bytes"] != torrent.size:
                raise Failed(f"not all is good: {report}")


def sums(results, torrent):
    for cold in (True, False):
        check(results, "sha1sum", ["sha1sum", torrent.content], torrent, cold)


def bounded(results, client):
    """A cold read in order through a cache much smaller than the file."""
    client.options = ("--cache-size", f"{BOUND_MIB}M")
    size = client.swarm.torrent.size
    with client:
        with Watch(client.pid) as memory, client.reader().stream() as stream:
            seconds = read_through(stream, size)
            cpu = client.cpu()
    results.add("bounded, MiB/s", client.name, size / MIB / seconds)
    results.add("bounded, CPU s/GiB", client.name, cpu / (size / (1024 * MIB)))
    results.add("bounded, memory", client.name, memory.peak)
