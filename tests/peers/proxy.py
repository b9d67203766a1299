"""A proxy for the tests, by SOCKS5 (RFC 1928 and 1929, with UDP ASSOCIATE) or HTTP. It wants the user "me" with the password
"se:cret". Prints "ready" and ends when its stdin closes.

    proxy.py socks5|http INSIDE PORT OUTSIDE NAME=ADDRESS...

INSIDE is where it listens, and OUTSIDE where its own packets come from. It knows the given names and no others.

It prints "connect HOST:PORT" and "packet HOST:PORT" for what it was asked, and "relay PORT" for each port at which it takes
packets.
"""

import base64
import os
import select
import socket
import struct
import sys
import threading
from urllib.parse import urlsplit

USER, PASSWORD = b"me", b"se:cret"


def say(line):
    print(line, flush=True)


def exactly(stream, length):
    got = b""
    while len(got) < length:
        more = stream.recv(length - len(got))
        if not more:
            raise EOFError
        got += more
    return got


def reach(host, port):
    say(f"connect {host}:{port}")
    return socket.create_connection((NAMES.get(host, host), port), timeout=20)


def carry(one, other):
    """Bytes in both directions, until one end closes."""
    for stream in (one, other):
        stream.settimeout(None)
    to = {one: other, other: one}
    while True:
        for stream in select.select(list(to), [], [])[0]:
            some = stream.recv(65536)
            if not some:
                return
            to[stream].sendall(some)


def target(read):
    """The address of SOCKS5, of what `read` gives."""
    kind = read(1)[0]
    if kind == 1:
        host = socket.inet_ntoa(read(4))
    elif kind == 3:
        host = read(read(1)[0]).decode()
    else:
        host = socket.inet_ntop(socket.AF_INET6, read(16))
    return host, struct.unpack(">H", read(2))[0]


def place(host, port):
    return b"\1" + socket.inet_aton(host) + struct.pack(">H", port)


def relay(stream):
    """Packets, for as long as the connection is there."""
    inner, outer = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    inner.bind((INSIDE, 0))
    outer.bind((OUTSIDE, 0))
    say(f"relay {inner.getsockname()[1]}")
    stream.sendall(b"\5\0\0" + place(*inner.getsockname()))
    client = None
    while True:
        for ready in select.select([stream, inner, outer], [], [])[0]:
            if ready is stream:
                if not stream.recv(1):
                    return
            elif ready is inner:
                packet, client = inner.recvfrom(65536)
                at = 3

                def read(length):
                    nonlocal at
                    at += length
                    return packet[at - length : at]

                host, port = target(read)
                say(f"packet {host}:{port}")
                outer.sendto(packet[at:], (NAMES.get(host, host), port))
            else:
                packet, sender = outer.recvfrom(65536)
                if client:
                    inner.sendto(b"\0\0\0" + place(*sender) + packet, client)


def socks5(stream):
    ways = exactly(stream, exactly(stream, 2)[1])
    if 2 not in ways:
        return stream.sendall(b"\5\xff")
    stream.sendall(b"\5\2")
    user = exactly(stream, exactly(stream, 2)[1])
    password = exactly(stream, exactly(stream, 1)[0])
    if (user, password) != (USER, PASSWORD):
        return stream.sendall(b"\1\1")
    stream.sendall(b"\1\0")
    _, command, _ = exactly(stream, 3)
    host, port = target(lambda length: exactly(stream, length))
    if command == 3:
        return relay(stream)
    try:
        other = reach(host, port)
    except OSError:
        return stream.sendall(b"\5\5\0" + place("0.0.0.0", 0))
    with other:
        stream.sendall(b"\5\0\0" + place("0.0.0.0", 0))
        carry(stream, other)


def http(stream):
    head = b""
    while b"\r\n\r\n" not in head:
        head += exactly(stream, 1)
    lines = head.decode().split("\r\n")
    secret = "Proxy-Authorization: Basic " + base64.b64encode(USER + b":" + PASSWORD).decode()
    if secret.lower() not in [line.lower() for line in lines]:
        return stream.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
    method, what, version = lines[0].split(" ")
    url = urlsplit(what if "://" in what else f"//{what}")
    try:
        other = reach(url.hostname, url.port or 80)
    except OSError:
        return stream.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
    with other:
        if method == "CONNECT":
            stream.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        else:
            # One request a connection: the next may be for another host.
            rest = [line for line in lines[1:-2] if not line.lower().startswith(("proxy-", "connection:"))]
            path = url.path + (f"?{url.query}" if url.query else "")
            request = [f"{method} {path or '/'} {version}", *rest, "Connection: close", "", ""]
            other.sendall("\r\n".join(request).encode())
        carry(stream, other)


def serve(stream):
    with stream:
        try:
            {"socks5": socks5, "http": http}[HOW](stream)
        except (OSError, EOFError):
            pass


def listen():
    while True:
        stream, _ = door.accept()
        threading.Thread(target=serve, args=(stream,), daemon=True).start()


if __name__ == "__main__":
    HOW, INSIDE, PORT, OUTSIDE = sys.argv[1:5]
    NAMES = dict(pair.split("=") for pair in sys.argv[5:])
    door = socket.create_server((INSIDE, int(PORT)), backlog=64)
    threading.Thread(target=listen, daemon=True).start()
    say("ready")
    sys.stdin.read()
    os._exit(0)
