"""Relays of a limited rate and a set delay, in front of peers. Prints "ready PORT PORT ..." in the order of its links,
and ends when its stdin closes.

    relay.py --link LISTEN_ADDR:PORT=TARGET_ADDR:PORT... [--rate BYTES_PER_S] [--up-rate BYTES_PER_S]
             [--delay SECONDS]

The rate holds for each link and direction, all its connections together: --rate towards who connected, --up-rate the
other way; 0 is no limit. --delay is one way. Bytes come out as a wire of that rate would give them, in steps of
CHUNK_SECONDS; nothing is saved up while the line is idle, so the first bytes after a pause aren't free. Besides what is
on its way for --delay, at most BUFFER bytes wait inside for each connection and direction, kernel buffers included, so
that a limited peer behind it notices at once that the line is full.

Commands on stdin: "rate N" changes --rate; "passed" prints "passed DOWN UP"; "flight" prints "flight BYTES", what was
asked for and has neither come nor been refused, over all links ("flight unknown" if a peer speaks encrypted).
Peers only: it reads the messages that pass, and changes none. It has no UDP, so no uTP.
"""

import argparse
import asyncio
import os
import socket
import sys
import threading

# What waits inside a direction at most, kernel buffers included.
BUFFER = 64 * 1024
# One step of a limited line: short beside any time that is measured through it.
CHUNK_SECONDS = 0.004
CHUNK_MAX = 16 * 1024
# How late the relay itself may be, on a busy machine, without the line losing that time.
SLACK = 0.02
# What is on its way through a line that has a delay and no rate: chunks.
UNLIMITED_AHEAD = 256
# As on Ethernet: with the segments of loopback (64 KiB) so small a buffer would stall.
SEGMENT = 1448

HANDSHAKE = 68
REQUEST, PIECE, CANCEL, REJECT = 6, 7, 8, 16


class Wire:
    """Follows the messages of one direction, and adds up what concerns blocks."""

    def __init__(self):
        self.head = bytearray()
        self.want = HANDSHAKE
        self.skip = 0
        self.body = 0
        self.fast = False
        self.unknown = False
        self.bytes = {REQUEST: 0, PIECE: 0, CANCEL: 0, REJECT: 0}

    def feed(self, data):
        at = 0
        while at < len(data) and not self.unknown:
            if self.skip:
                step = min(self.skip, len(data) - at)
                self.skip -= step
                if not self.skip:
                    self.bytes[PIECE] += self.body
                    self.body = 0
            else:
                step = min(self.want - len(self.head), len(data) - at)
                self.head += data[at : at + step]
                if len(self.head) == self.want:
                    self.understand()
            at += step

    def understand(self):
        head, length = self.head, int.from_bytes(self.head[:4], "big")
        if self.want == HANDSHAKE:
            self.unknown = head[0] != 19
            self.fast = bool(head[27] & 4)
            self.want = 4
        elif self.want == 4:
            self.want = 5 if length else 4
            if length:
                return
        elif self.want == 5 and head[4] in (REQUEST, CANCEL, REJECT) and length == 13:
            self.want = 17
            return
        elif self.want == 5:
            self.body = length - 9 if head[4] == PIECE else 0
            self.skip = length - 1
            self.want = 4
        else:
            self.bytes[head[4]] += int.from_bytes(head[13:17], "big")
            self.want = 4
        head.clear()


class Line:
    """One direction of a link: when which bytes may come out."""

    def __init__(self, rate, delay):
        self.rate, self.delay = rate, delay
        self.free_at = 0.0
        self.passed = 0

    def chunk(self):
        if not self.rate:
            return CHUNK_MAX
        return max(512, min(CHUNK_MAX, int(self.rate * CHUNK_SECONDS)))

    def ahead(self):
        return int(self.delay / CHUNK_SECONDS) + 2 if self.rate else UNLIMITED_AHEAD

    def done_at(self, now, size, waited):
        """When the last of these bytes has left the line; `waited` says that it was idle until now."""
        if not self.rate:
            return now
        self.free_at = max(self.free_at, now if waited else now - SLACK) + size / self.rate
        return self.free_at


async def pump(line, wire, source, sink):
    """Carries one connection's bytes of one direction until either end closes."""
    loop = asyncio.get_running_loop()
    late = asyncio.Queue(maxsize=line.ahead()) if line.delay else None

    async def give(data):
        await loop.sock_sendall(sink, data)
        line.passed += len(data)
        wire.feed(data)

    async def give_late():
        while True:
            due, data = await late.get()
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            await give(data)

    giver = asyncio.create_task(give_late()) if late is not None else None
    try:
        while True:
            try:
                data, waited = source.recv(line.chunk()), False
            except BlockingIOError:
                data, waited = await loop.sock_recv(source, line.chunk()), True
            if not data:
                break
            due = line.done_at(loop.time(), len(data), waited)
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            if late is not None:
                await late.put((loop.time() + line.delay, data))
            else:
                await give(data)
    except OSError:
        pass
    finally:
        if giver:
            giver.cancel()


def prepare(sock):
    sock.setblocking(False)
    # The kernel doubles what it is told, and half of that is for its own bookkeeping.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER // 2)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER // 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Link:
    def __init__(self, listen, target, args):
        host, port = listen.rsplit(":", 1)
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        prepare(self.socket)
        self.socket.bind((host, int(port)))
        self.socket.listen(128)
        host, port = target.rsplit(":", 1)
        self.target = (host, int(port))
        self.down = Line(args.rate, args.delay)
        self.up = Line(args.up_rate, args.delay)
        self.live = set()

    async def serve(self):
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(self.socket)
            task = asyncio.create_task(self.connection(client))
            # A task that nobody holds may be collected.
            self.live.add(task)
            task.add_done_callback(self.live.discard)

    async def connection(self, client):
        loop = asyncio.get_running_loop()
        server = socket.socket()
        prepare(client)
        prepare(server)
        pair = (Wire(), Wire())
        tasks = []
        try:
            await loop.sock_connect(server, self.target)
            WIRES.add(pair)
            tasks = [
                asyncio.create_task(pump(self.up, pair[0], client, server)),
                asyncio.create_task(pump(self.down, pair[1], server, client)),
            ]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        except OSError:
            pass
        finally:
            WIRES.discard(pair)
            for task in tasks:
                task.cancel()
            client.close()
            server.close()


# The two directions (up, down) of every live connection.
WIRES = set()


def flight():
    total = 0
    for up, down in WIRES:
        if up.unknown or down.unknown:
            return "unknown"
        asked, come = up.bytes, down.bytes
        gone = come[PIECE] + (come[REJECT] if up.fast and down.fast else asked[CANCEL])
        total += max(0, asked[REQUEST] - gone)
    return total


def command(links, words):
    if words[:1] == ["rate"]:
        for link in links:
            link.down.rate = int(words[1])
    elif words[:1] == ["passed"]:
        print(f"passed {sum(link.down.passed for link in links)} {sum(link.up.passed for link in links)}", flush=True)
    elif words[:1] == ["flight"]:
        print(f"flight {flight()}", flush=True)


async def run(args):
    loop = asyncio.get_running_loop()
    links = [Link(*link.split("="), args) for link in args.link]
    closed = asyncio.Event()

    def listen_to_stdin():
        for line in sys.stdin:
            loop.call_soon_threadsafe(command, links, line.split())
        loop.call_soon_threadsafe(closed.set)

    threading.Thread(target=listen_to_stdin, daemon=True).start()
    print("ready " + " ".join(str(link.socket.getsockname()[1]) for link in links), flush=True)
    serving = [asyncio.create_task(link.serve()) for link in links]
    await closed.wait()
    for task in serving:
        task.cancel()


def main():
    try:
        # A line's rate doesn't depend on how busy the machine is.
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    except PermissionError:
        pass
    parser = argparse.ArgumentParser()
    parser.add_argument("--link", action="append", required=True)
    parser.add_argument("--rate", type=int, default=0)
    parser.add_argument("--up-rate", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0.0)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
