"""Sees every packet that leaves this network namespace, on whatever interface, loopback included. Prints "ready", and "sent
PROTOCOL ADDRESS:PORT" for each place to which one goes, once; with "--interfaces" it adds " by INTERFACE". A line on stdin is answered by "all COUNT", when all packets
that had gone by then were looked at. Ends when its stdin closes.

What hosts say to be found in their network (ARP, neighbour discovery) isn't counted.
"""

import select
import socket
import struct
import sys

ALL, OUTGOING = 3, 4
ICMPV6 = 58
NAMES = {1: "ICMP", 2: "IGMP", 6: "TCP", 17: "UDP"}


def where(kind, packet):
    """Whom an IP packet is for; `None` for what isn't counted."""
    if kind == 0x0800:
        protocol, to, rest = packet[9], socket.inet_ntop(socket.AF_INET, packet[16:20]), packet[4 * (packet[0] & 15) :]
    elif kind == 0x86DD:
        protocol, to, rest = packet[6], socket.inet_ntop(socket.AF_INET6, packet[24:40]), packet[40:]
        # Neighbours, and groups of the kernel's own: these come with an option before them.
        if protocol in (0, ICMPV6):
            return None
    else:
        return None
    port = struct.unpack(">H", rest[2:4])[0] if protocol in (6, 17) else 0
    return f"{NAMES.get(protocol, protocol)} {to}:{port}"


def main():
    # Of all interfaces; without the link's head, which differs.
    ear = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ALL))
    ear.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
    ear.setblocking(False)
    print("ready", flush=True)
    seen, count, tell = set(), 0, "--interfaces" in sys.argv
    while True:
        ready = select.select([ear, sys.stdin], [], [])[0]
        try:
            while True:
                packet, (interface, kind, way, _, _) = ear.recvfrom(65536)
                to = where(kind, packet) if way == OUTGOING else None
                if to is None:
                    continue
                count += 1
                to += f" by {interface}" if tell else ""
                if to not in seen:
                    seen.add(to)
                    print(f"sent {to}", flush=True)
        except BlockingIOError:
            pass
        if sys.stdin in ready:
            if not sys.stdin.readline():
                return
            print(f"all {count}", flush=True)


if __name__ == "__main__":
    main()
