"""Measurements of waiting: the first byte, seeks to places that are missing, a player. Each function measures one client
once and adds its figures.
"""

import random
import threading
import time

from .report import SEEK_FLOOR
from .tools import MIB, Failed

READ = 4096
# The player: plays RATE, holds at most AHEAD, and starts, or goes on after a stall, with START, half a second of playing.
PLAYER_RATE = 4 * MIB
PLAYER_AHEAD = 8 * MIB
PLAYER_START = PLAYER_RATE // 2
PLAYER_CHUNK = 64 * 1024
PLAYER_SECONDS = 30
# The bulk reader of a swarm of 8 MiB/s is at work when it has this much.
BULK_BEGUN = 8 * MIB


def first_byte(results, client):
    row = "magnet: start to first byte, s" if client.magnet else "`.torrent`: start to first byte, s"
    with client:
        reader = client.reader()
        reader.at(0, READ)
        results.add(row, client.name, client.since_start())
        begin = time.monotonic()
        reader.at(client.swarm.torrent.size // 2, READ)
        results.add("first byte in the middle after that, s", client.name, time.monotonic() - begin)
        reader.close()


class Places:
    """Places in different pieces of the file's latter half, never in a piece next to one given before. (The bulk reader,
    and rqbit's download in the background, are in the first half.)"""

    def __init__(self, torrent, seed):
        self.source, self.piece = random.Random(seed), torrent.piece
        self.left = list(range(torrent.pieces // 2 + 1, torrent.pieces - 1, 2))
        self.source.shuffle(self.left)

    def next(self):
        if not self.left:
            raise Failed("the file has too few pieces for so many seeks")
        return self.left.pop() * self.piece + READ * self.source.randrange(self.piece // READ)


def timed_read(reader, place):
    begin = time.monotonic()
    reader.at(place, READ)
    return time.monotonic() - begin


def seeks_unlimited(results, client, seed, count):
    places = Places(client.swarm.torrent, seed)
    with client:
        reader = client.reader()
        reader.at(0, READ)
        for _ in range(count):
            results.add("seek unlimited", client.name, timed_read(reader, places.next()))
        reader.close()


def seeks(results, client, kind, seed, count, pause, bulk):
    """Seeks from idle, `pause` seconds apart, and with `bulk` as many beside a reader in order."""
    swarm, who = client.swarm, client.name
    places = Places(swarm.torrent, seed)
    with client:
        reader = client.reader()
        reader.at(0, READ)
        for _ in range(count):
            time.sleep(pause)
            results.add(f"seek {kind} idle", who, timed_read(reader, places.next()))
        if bulk:
            beside_bulk(results, client, reader, kind, places, count, pause)
        reader.close()


def beside_bulk(results, client, reader, kind, places, count, pause):
    swarm, who = client.swarm, client.name
    over, begun = threading.Event(), threading.Event()

    def read_in_order():
        buffer, total = bytearray(PLAYER_CHUNK), 0
        try:
            with client.reader().stream() as stream:
                while not over.is_set() and (got := stream.readinto(buffer)):
                    total += got
                    if total >= BULK_BEGUN:
                        begun.set()
        except (Failed, OSError):
            pass
        begun.set()

    thread = threading.Thread(target=read_in_order, daemon=True)
    thread.start()
    begun.wait()
    try:
        for _ in range(count):
            time.sleep(pause)
            if not thread.is_alive():
                raise Failed("the reader in order ended before the seeks did")
            flight = swarm.flight()
            taken = timed_read(reader, places.next())
            results.add(f"seek {kind} bulk", who, taken)
            if flight is not None:
                results.add(f"seek {kind} flight", who, flight / 1024)
                results.add(f"seek {kind} ratio", who, taken / (SEEK_FLOOR + flight / swarm.rate))
    finally:
        over.set()
        thread.join(10)


class Playback:
    """What a player shows, from when which bytes came; its clock goes on only in `advance`."""

    def __init__(self, now):
        self.last = now
        self.got = self.played = 0
        self.started = None
        self.playing = False
        self.stalls, self.stalled = 0, 0.0

    def advance(self, now):
        passed, self.last = now - self.last, now
        if not self.playing:
            if self.started is not None:
                self.stalled += passed
            return
        lasts = (self.got - self.played) / PLAYER_RATE
        if passed <= lasts:
            self.played += passed * PLAYER_RATE
            return
        self.played = self.got
        self.stalls += 1
        self.stalled += passed - lasts
        self.playing = False

    def arrived(self, now, size):
        self.advance(now)
        self.got += size
        if not self.playing and self.got - self.played >= PLAYER_START:
            self.playing = True
            if self.started is None:
                self.started = now

    def too_far_ahead(self):
        """Seconds until the player wants more."""
        return max(0.0, (self.got - self.played - PLAYER_AHEAD) / PLAYER_RATE)


def player(results, client, kind, seconds=PLAYER_SECONDS):
    """Plays from the begin for some seconds; the start counts from that of the program."""
    buffer = bytearray(PLAYER_CHUNK)
    with client, client.reader().stream() as stream:
        play = Playback(time.monotonic())
        while play.started is None or time.monotonic() < play.started + seconds:
            got = stream.readinto(buffer)
            if not got:
                raise Failed("the file ended")
            play.arrived(time.monotonic(), got)
            if (pause := play.too_far_ahead()) > 0:
                time.sleep(pause)
    results.add(f"player {kind} start", client.name, play.started - client.started)
    results.add(f"player {kind} stalls", client.name, play.stalls)
    results.add(f"player {kind} stalled", client.name, play.stalled)
