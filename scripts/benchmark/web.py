"""nginx as the only source, and measurements of reading from it: through the mount, by `curl`, by libtorrent as a client
of the same webseed. Each function measures one of them once and adds its figures.

nginx sends from the page cache, without TLS and without a limit: it shares the processor with who is measured.
"""

import copy
import hashlib
import os
import pathlib
import random
import resource
import shutil
import socket
import subprocess
import time

import libtorrent as lt

from .tools import MIB, Failed, Watch, await_state, read_through, same

NGINX_LIMIT = 10
CURL_LIMIT = 120
LIBTORRENT_LIMIT = 60
# Each takes a second, as long as libtorrent's clock ticks.
LIBTORRENT_SEEKS = 8
# Places to read from, each in a piece of its own, and how much there.
SEEKS, SEEK = 32, 64 * 1024
# Hashed over and over: larger than the processor's caches.
HASHED_MIB, HASHED_TIMES = 64, 4


class Nginx:
    """nginx on loopback, as a single process in the foreground, over a folder."""

    def __init__(self, root, folder):
        folder.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        aside = "".join(f"{what}_temp_path {what};" for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        (folder / "nginx.conf").write_text(
            "daemon off; master_process off; pid nginx.pid; events {}\n"
            f"http {{ access_log off; sendfile on; default_type application/octet-stream; {aside}\n"
            f'server {{ listen 127.0.0.1:{self.port}; root "{root}"; }} }}\n'
        )
        path = os.environ["PATH"] + ":/usr/sbin:/sbin"
        program = shutil.which("nginx", path=path)
        if not program:
            raise SystemExit("there is no nginx (Debian: nginx)")
        self.process = subprocess.Popen([program, "-e", "error.log", "-p", folder, "-c", "nginx.conf"])
        await_state("nginx", NGINX_LIMIT, self.listens)

    def listens(self):
        if self.process.poll() is not None:
            raise SystemExit(f"nginx ended with {self.process.returncode}")
        with socket.socket() as there:
            return there.connect_ex(("127.0.0.1", self.port)) == 0

    def url(self, name):
        return f"http://127.0.0.1:{self.port}/{name}"

    def stop(self):
        self.process.terminate()
        self.process.wait(NGINX_LIMIT)


class WebSwarm:
    """What a client is pointed at: the torrent, with nginx in its `url-list`, and no peer."""

    addresses = ()

    def __init__(self, torrent, nginx, folder):
        self.url = nginx.url(torrent.file)
        data = lt.bdecode(torrent.path.read_bytes())
        data[b"url-list"] = self.url.encode()
        self.torrent = copy.copy(torrent)
        self.torrent.path = pathlib.Path(folder) / "webseeded.torrent"
        self.torrent.path.write_bytes(lt.bencode(data))


def add_cold(results, who, size, seconds, cpu, memory=None):
    results.add("web cold", who, size / MIB / seconds)
    results.add("web CPU", who, cpu / (size / (1024 * MIB)))
    if memory is not None:
        results.add("web memory", who, memory)


def mounted(results, client):
    """A cold read of the whole file in order, through the mount."""
    torrent = client.swarm.torrent
    with client:
        with Watch(client.pid) as memory, client.reader().stream() as stream:
            seconds = read_through(stream, torrent.size)
            cpu = client.cpu()
        add_cold(results, client.name, torrent.size, seconds, cpu, memory.peak)
        if not same(client.path, torrent.content):
            raise SystemExit("the mount's bytes differ from the source's")


def to_disk(results, client):
    """libtorrent fetching all of it."""
    torrent = client.swarm.torrent
    with client:
        with Watch(client.pid) as memory:
            seconds, cpu = client.await_done()
        if not same(client.folder / torrent.file, torrent.content):
            raise SystemExit("libtorrent's bytes differ from the source's")
    add_cold(results, client.name, torrent.size, seconds, cpu, memory.peak)


def curl(results, swarm, folder):
    """`curl` to a file on the same disk; and the same with what makes it worth as much: then each piece of it is hashed."""
    folder.mkdir(parents=True)
    try:
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        run_curl("-o", folder / "file", swarm.url)
        seconds, after = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
        hashed = time.monotonic()
        with open(folder / "file", "rb", buffering=0) as got:
            while piece := got.read(swarm.torrent.piece):
                hashlib.sha1(piece).digest()
        hashed = time.monotonic() - hashed
        if not same(folder / "file", swarm.torrent.content):
            raise SystemExit("curl's bytes differ from the source's")
    finally:
        shutil.rmtree(folder)
    results.add("web cold", "curl, then SHA-1", swarm.torrent.size / MIB / (seconds + hashed))
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    add_cold(results, "curl", swarm.torrent.size, seconds, cpu)


def run_curl(*args):
    command = ["curl", "--silent", "--show-error", "--fail", *map(str, args)]
    made = subprocess.run(command, capture_output=True, timeout=CURL_LIMIT, check=False)
    if made.returncode:
        raise Failed(f"curl: {made.stderr.decode(errors='replace').strip()}")
    return made.stdout


def places(torrent, seed):
    pieces = random.Random(seed).sample(range(torrent.pieces - 1), min(SEEKS, torrent.pieces - 1))
    source = random.Random(seed + 1)
    return [piece * torrent.piece + SEEK * source.randrange(torrent.piece // SEEK) for piece in pieces]


def seeks(results, client, seed):
    """Reads at random places that aren't here, one after the other, each in a piece of its own."""
    with client:
        reader = client.reader()
        for place in places(client.swarm.torrent, seed):
            begin = time.monotonic()
            reader.at(place, SEEK)
            results.add("web seek", client.name, time.monotonic() - begin)
        reader.close()


def curl_seeks(results, swarm, seed):
    """The same ranges by `curl -r`, a process each; and whole pieces, which is what has to be hashed."""
    piece = swarm.torrent.piece
    for place in places(swarm.torrent, seed):
        for row, begin, length in (("web seek", place, SEEK), ("web seek, piece", place - place % piece, piece)):
            start = time.monotonic()
            got = run_curl("-r", f"{begin}-{begin + length - 1}", swarm.url)
            seconds = time.monotonic() - start
            if len(got) != length:
                raise Failed(f"{len(got)} bytes of {length} at {begin}")
            results.add(row, "curl", seconds)


def libtorrent_seeks(results, swarm, folder, seed):
    """The pieces of the same places by libtorrent, of which nothing else is wanted: each with a deadline of now, until it
    hands it out."""
    torrent = swarm.torrent
    session = lt.session({
        "enable_dht": False, "enable_lsd": False, "enable_upnp": False, "enable_natpmp": False,
        "listen_interfaces": "", "alert_mask": lt.alert.category_t.status_notification | lt.alert.category_t.error_notification,
        # Our own machine is where nginx listens.
        "ssrf_mitigation": False, "no_connect_privileged_ports": False,
    })
    folder.mkdir(parents=True)
    try:
        params = lt.add_torrent_params()
        params.ti, params.save_path = lt.torrent_info(str(torrent.path)), str(folder)
        params.piece_priorities = [0] * torrent.pieces
        handle = session.add_torrent(params)
        for place in places(torrent, seed)[:LIBTORRENT_SEEKS]:
            piece, begin = place // torrent.piece, time.monotonic()
            handle.piece_priority(piece, 7)
            handle.set_piece_deadline(piece, 0, lt.deadline_flags_t.alert_when_available)
            while not any(isinstance(alert, lt.read_piece_alert) for alert in session.pop_alerts()):
                if time.monotonic() - begin > LIBTORRENT_LIMIT:
                    raise Failed(f"libtorrent: piece {piece} hasn't come in {LIBTORRENT_LIMIT} s")
                session.wait_for_alert(100)
            results.add("web seek, piece", "libtorrent to disk", time.monotonic() - begin)
    finally:
        del session
        shutil.rmtree(folder, ignore_errors=True)


def hashing(results):
    """SHA-1 by one thread, of what is in memory: nobody who checks pieces one at a time is faster."""
    data = bytes(HASHED_MIB * MIB)
    begin = time.monotonic()
    for _ in range(HASHED_TIMES):
        hashlib.sha1(data).digest()
    results.add("web cold", "SHA-1, one thread", HASHED_MIB * HASHED_TIMES / (time.monotonic() - begin))
