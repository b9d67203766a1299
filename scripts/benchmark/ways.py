"""The same seeders reached in each of the ways that there are: over TCP and over uTP, each with and without encryption of
all that is sent. Ours reads the whole file through the mount, libtorrent fetches it to disk.
"""

import dataclasses

from .tools import MIB, read_through, same


@dataclasses.dataclass(frozen=True)
class Way:
    """How seeders take connections, and what makes each client use that: `torrentfs` has no switch against TCP, but
    nobody answers it where there is uTP alone."""

    name: str
    seeder: tuple
    ours: tuple
    libtorrent: tuple


RC4 = ("--encrypt", "--enc-level", "rc4")
WAYS = (
    Way("plain, over TCP", ("--no-utp",), ("--encryption", "off", "--no-utp"), ("--no-utp", "--plain")),
    Way("RC4, over TCP", ("--no-utp", *RC4), ("--encryption", "require", "--no-utp"), ("--no-utp", *RC4)),
    Way("plain, over uTP", ("--no-tcp",), ("--encryption", "off"), ("--no-tcp", "--plain")),
    Way("RC4, over uTP", ("--no-tcp", *RC4), ("--encryption", "require"), ("--no-tcp", *RC4)),
)


def mounted(results, client, way):
    """A cold read of the whole file in order."""
    client.options = way.ours
    torrent = client.swarm.torrent
    with client:
        with client.reader().stream() as stream:
            seconds = read_through(stream, torrent.size)
            cpu = client.cpu()
        if not same(client.path, torrent.content):
            raise SystemExit("the mount's bytes differ from the source's")
    add(results, client.name, way, torrent.size, seconds, cpu)


def to_disk(results, client, way):
    client.options = way.libtorrent
    torrent = client.swarm.torrent
    with client:
        seconds, cpu = client.await_done()
        if not same(client.folder / torrent.file, torrent.content):
            raise SystemExit("libtorrent's bytes differ from the source's")
    add(results, client.name, way, torrent.size, seconds, cpu)


def add(results, who, way, size, seconds, cpu):
    results.add(f"{way.name}, MiB/s", who, size / MIB / seconds)
    results.add(f"{way.name}, CPU, s/GiB", who, cpu / (size / (1024 * MIB)))
