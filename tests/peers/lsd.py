"""Somebody in the local network, for the tests of local service discovery (BEP 14): says what it is told to say, and tells
what it hears. Prints "ready PORT" and ends when its stdin closes.

    lsd.py ADDRESS

It prints "heard HASH PORT ADDRESS" for each torrent that another announces, and "dialled HASH ADDRESS" when a peer connects
to it and says its handshake without encryption.

Commands on stdin: "say HASH..." announces these torrents, with its own port.
"""

import os
import socket
import struct
import sys
import threading

GROUP, PORT = "239.192.152.143", 6771
MINE = b"cookie: lsd.py"


def listen(ear):
    while True:
        packet, (address, _) = ear.recvfrom(4096)
        if MINE in packet:
            continue
        headers = [line.split(":", 1) for line in packet.decode("latin-1").split("\r\n") if ":" in line]
        of = lambda name: [value.strip() for key, value in headers if key.lower() == name]
        for found in of("infohash"):
            print(f"heard {found.lower()} {of('port')[0]} {address}", flush=True)


def greet(stream, address):
    hello = b""
    while len(hello) < 68:
        more = stream.recv(68 - len(hello))
        if not more:
            return
        hello += more
    print(f"dialled {hello[28:48].hex()} {address}", flush=True)


def open_door(door):
    while True:
        stream, (address, _) = door.accept()
        threading.Thread(target=greet, args=(stream, address), daemon=True).start()


def main():
    ip = sys.argv[1]
    ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    ear.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    ear.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    ear.bind((GROUP, PORT))
    ear.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, struct.pack("4s4s", socket.inet_aton(GROUP), socket.inet_aton(ip)))
    mouth = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    mouth.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(ip))
    door = socket.create_server((ip, 0))
    port = door.getsockname()[1]
    for task, on in ((listen, ear), (open_door, door)):
        threading.Thread(target=task, args=(on,), daemon=True).start()
    print(f"ready {port}", flush=True)
    for command in sys.stdin:
        words = command.split()
        if words[:1] == ["say"]:
            hashes = "".join(f"Infohash: {found}\r\n" for found in words[1:])
            packet = f"BT-SEARCH * HTTP/1.1\r\nHost: {GROUP}:{PORT}\r\nPort: {port}\r\n{hashes}".encode() + MINE + b"\r\n\r\n\r\n"
            mouth.sendto(packet, (GROUP, PORT))
    os._exit(0)


if __name__ == "__main__":
    main()
