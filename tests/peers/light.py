"""Many light seeders in one process, for the tests and benchmarks: each listens at a port of its own, has everything,
unchokes whoever comes, and answers requests. Prints "ready ADDR:PORT ADDR:PORT ..." and ends when its stdin closes.

    light.py TORRENT DATA_FILE --peers N [--address ADDR]

For torrents of one file. It speaks only what a seeder must: handshake, have_all (or a bitfield), unchoke, piece; no
extensions, no encryption, no uTP, and a cancelled block comes all the same.

Commands on stdin: "connections" prints "connections N"; "uploaded" prints "uploaded BYTES".
"""

import argparse
import asyncio
import mmap
import os
import sys
import threading

import libtorrent as lt

HANDSHAKE = 68
REQUEST = 6
FAST = 4


class Torrent:
    def __init__(self, args):
        info = lt.torrent_info(args.torrent)
        self.hash = info.info_hashes().v1.to_bytes()
        self.piece_length = info.piece_length()
        self.pieces = info.num_pieces()
        with open(args.data, "rb") as file:
            self.data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self.uploaded = 0
        self.connections = 0

    def bitfield(self):
        bits = bytearray(b"\xff" * ((self.pieces + 7) // 8))
        if spare := len(bits) * 8 - self.pieces:
            bits[-1] = 0xFF << spare & 0xFF
        return (len(bits) + 1).to_bytes(4, "big") + b"\x05" + bits


class Light(asyncio.Protocol):
    """One connection."""

    def __init__(self, torrent, number):
        self.torrent = torrent
        # Its own in every process: a client drops a second connection to the same peer.
        self.id = b"-LI0100-" + f"{os.getpid():08}{number:04}".encode()
        self.buffer = bytearray()
        self.greeted = False

    def connection_made(self, transport):
        self.transport = transport
        self.torrent.connections += 1

    def connection_lost(self, _error):
        self.torrent.connections -= 1

    def data_received(self, data):
        self.buffer += data
        if not self.greeted and not self.greet():
            return
        at, answers = 0, []
        while len(self.buffer) - at >= 4:
            length = int.from_bytes(self.buffer[at : at + 4], "big")
            if len(self.buffer) - at < 4 + length:
                break
            if length == 13 and self.buffer[at + 4] == REQUEST:
                answers.append(self.piece(self.buffer[at + 5 : at + 17]))
            at += 4 + length
        del self.buffer[:at]
        if answers:
            self.transport.write(b"".join(answers))

    def greet(self):
        if len(self.buffer) < HANDSHAKE:
            return False
        if self.buffer[0] != 19 or self.buffer[28:48] != self.torrent.hash:
            self.transport.abort()
            return False
        fast = self.buffer[27] & FAST
        del self.buffer[:HANDSHAKE]
        self.greeted = True
        hello = b"\x13BitTorrent protocol" + bytes([0, 0, 0, 0, 0, 0, 0, FAST]) + self.torrent.hash + self.id
        have = b"\0\0\0\x01\x0e" if fast else self.torrent.bitfield()
        self.transport.write(hello + have + b"\0\0\0\x01\x01")
        return True

    def piece(self, asked):
        index, begin, length = (int.from_bytes(asked[i : i + 4], "big") for i in (0, 4, 8))
        start = index * self.torrent.piece_length + begin
        self.torrent.uploaded += length
        head = (length + 9).to_bytes(4, "big") + b"\x07" + asked[:8]
        return head + self.torrent.data[start : start + length]


async def run(args):
    loop = asyncio.get_running_loop()
    torrent = Torrent(args)
    servers = [
        await loop.create_server(lambda number=number: Light(torrent, number), args.address, 0) for number in range(args.peers)
    ]
    closed = asyncio.Event()

    def listen_to_stdin():
        for line in sys.stdin:
            if line.strip() == "connections":
                print(f"connections {torrent.connections}", flush=True)
            elif line.strip() == "uploaded":
                print(f"uploaded {torrent.uploaded}", flush=True)
        loop.call_soon_threadsafe(closed.set)

    threading.Thread(target=listen_to_stdin, daemon=True).start()
    ports = [server.sockets[0].getsockname()[1] for server in servers]
    print("ready " + " ".join(f"{args.address}:{port}" for port in ports), flush=True)
    await closed.wait()
    os._exit(0)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("torrent")
    parser.add_argument("data")
    parser.add_argument("--peers", type=int, default=1)
    parser.add_argument("--address", default="127.0.2.1")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
