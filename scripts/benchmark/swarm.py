"""Content, and who serves it: libtorrent seeders (unlimited or with libtorrent's own limiter), relays of a smooth rate
in front of them, many light peers, and a tracker for clients that take peers from nowhere else.

A `Swarm` is what a client is pointed at: a torrent and addresses. Everybody has an address of their own in 127.0.0.0/8,
as clients treat two peers of one address as suspicious.
"""

import http.server
import json
import random
import socket
import threading

import libtorrent as lt

from .tools import MIB, Failed, ask, end, run_python

# What the kernel holds for a seeder behind a relay: as much as the relay's own buffer, so that the line is short.
SEND_BUFFER = 64 * 1024


class Torrent:
    """A torrent and where its data lies. With a `name` it is a folder of that name, otherwise one file."""

    def __init__(self, path, data, described, name=None):
        self.path, self.data = path, data
        self.file, self.size = (name, described["total_size"]) if name else described["files"][0]
        self.piece, self.pieces = described["piece_length"], described["pieces"]
        self.hash = described["v1"]

    @property
    def content(self):
        return self.data / self.file


def make_random(folder, size):
    """`size` MiB of random bytes, which nothing compresses, in pieces of 1 MiB."""
    data, torrent = folder / "data", folder / "bench.torrent"
    data.mkdir()
    source = random.Random(1)
    with open(data / "bench.bin", "wb") as file:
        for _ in range(size):
            file.write(source.randbytes(MIB))
    return made(torrent, data, data / "bench.bin", torrent, "--piece-size", MIB)


def make_huge(folder, pieces):
    """A sparse file of that many pieces of 16 KiB."""
    data, torrent = folder / "huge", folder / "huge.torrent"
    return made(torrent, data, data, torrent, "--huge", pieces)


def make_many(folder, count, size, make_tree):
    """A torrent of `count` files of `size` bytes, which `make_tree` makes, in a hundred folders."""
    data, torrent = folder / f"many-{count}", folder / f"many-{count}.torrent"
    make_tree(data / "many", count, 100, size)
    return made(torrent, data, data / "many", torrent, "--piece-size", MIB, name="many")


def made(torrent, data, *args, name=None):
    process = run_python("mktorrent.py", *args)
    described, _ = process.communicate(timeout=600)
    if process.returncode != 0:
        raise SystemExit("mktorrent.py failed")
    return Torrent(torrent, data, json.loads(described), name)


class Seeders:
    """libtorrent seeders of one torrent, at 127.0.NET.2 and on."""

    def __init__(self, torrent, count, net, *options):
        self.processes, self.addresses = [], []
        for number in range(count):
            ip = f"127.0.{net}.{2 + number}"
            process = run_python("seeder.py", torrent.path, torrent.data, "--listen", f"{ip}:0", *options)
            self.processes.append(process)
            words = process.stdout.readline().split()
            if words[:1] != ["ready"]:
                raise SystemExit(f"a seeder didn't start: {words}")
            self.addresses.append(f"{ip}:{words[1]}")

    def tell(self, line):
        for process in self.processes:
            process.stdin.write(line + "\n")
            process.stdin.flush()

    def uploaded(self):
        return sum(int(ask(process, "uploaded")[1]) for process in self.processes)

    def stop(self):
        for process in self.processes:
            end(process)


class Relays:
    """One process that relays to each of some addresses, at 127.0.NET.2 and on."""

    def __init__(self, targets, net, rate):
        links = [f"127.0.{net}.{2 + number}:0={target}" for number, target in enumerate(targets)]
        options = [part for link in links for part in ("--link", link)]
        self.process = run_python("relay.py", *options, "--rate", rate)
        words = self.process.stdout.readline().split()
        if words[:1] != ["ready"]:
            raise SystemExit(f"the relays didn't start: {words}")
        self.addresses = [f"{link.split(':')[0]}:{port}" for link, port in zip(links, words[1:])]

    def tell(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def flight(self):
        """Bytes asked for and not yet come, or None."""
        answer = ask(self.process, "flight")[1]
        return None if answer == "unknown" else int(answer)

    def stop(self):
        end(self.process)


class Lights:
    """Light peers that have everything, spread over `processes` processes."""

    def __init__(self, torrent, count, processes, net):
        self.processes, self.addresses = [], []
        for number in range(processes):
            share = count // processes + (number < count % processes)
            options = ("--peers", share, "--address", f"127.0.{net}.{1 + number}")
            process = run_python("light.py", torrent.path, torrent.content, *options)
            self.processes.append(process)
            words = process.stdout.readline().split()
            if words[:1] != ["ready"]:
                raise SystemExit(f"the light peers didn't start: {words}")
            self.addresses += words[1:]

    def connections(self):
        return sum(int(ask(process, "connections")[1]) for process in self.processes)

    def stop(self):
        for process in self.processes:
            end(process)


class Tracker:
    """An HTTP tracker that answers everybody with the same peers; it only ever has one torrent's."""

    def __init__(self):
        tracker = self
        self.addresses = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                peers = b"".join(packed(address) for address in tracker.addresses)
                body = lt.bencode({b"interval": 1800, b"min interval": 60, b"peers": peers})
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/announce"

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


def packed(address):
    host, port = address.rsplit(":", 1)
    return socket.inet_aton(host) + int(port).to_bytes(2, "big")


class Swarm:
    """What a client is pointed at. `rate` is that of all peers together in bytes a second, 0 without a limit."""

    def __init__(self, torrent, peers, tracker, rate=0):
        self.torrent, self.peers, self.tracker, self.rate = torrent, peers, tracker, rate

    @property
    def addresses(self):
        return self.peers.addresses

    def set_rate(self, rate):
        """Shares a new rate among the peers, if it isn't the one they have."""
        if rate == self.rate:
            return
        word = {Seeders: "limit", Relays: "rate"}.get(type(self.peers))
        if word is None:
            raise Failed("these peers have no rate to set")
        self.rate = rate
        self.peers.tell(f"{word} {rate // len(self.addresses)}")

    def flight(self):
        return self.peers.flight() if isinstance(self.peers, Relays) else None

    def magnet(self):
        # Not percent-encoded: libtorrent takes x.pe as it stands.
        peers = "".join(f"&x.pe={address}" for address in self.addresses)
        return f"magnet:?xt=urn:btih:{self.torrent.hash}&dn={self.torrent.file}{peers}"

    def tracked(self, folder):
        """A copy of the torrent that names the tracker, which knows this swarm's peers from then on."""
        self.tracker.addresses = list(self.addresses)
        data = lt.bdecode(self.torrent.path.read_bytes())
        data[b"announce"] = self.tracker.url.encode()
        path = folder / "tracked.torrent"
        path.write_bytes(lt.bencode(data))
        return path
