"""A home's router, for the tests of port mapping: takes orders over NAT-PMP, or over UPnP, and has the kernel's NAT let
through what it maps. Prints "ready" and ends when its stdin closes.

    router.py natpmp|upnp INSIDE OUTSIDE LEASE

INSIDE and OUTSIDE are its addresses. It never maps a port of the same number: over NAT-PMP it gives the one 1000 above, over
UPnP it says that the port is taken. A mapping lives for LEASE seconds at most, as NAT-PMP tells; one that isn't renewed goes.

It prints "mapped PROTOCOL OUTSIDE-PORT INSIDE-PORT COUNT" each time, with how often that was asked for so far, and "unmapped
PROTOCOL OUTSIDE-PORT".
"""

import http.server
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time

GROUP, SEARCHES, ORDERS, DESCRIPTION = "239.255.255.250", 1900, 5351, 5000
SERVICE = "urn:schemas-upnp-org:service:WANIPConnection:1"

lock = threading.Lock()
# (protocol, outside) -> (host, inside, until, count)
table = {}


def nat():
    """Has the kernel let through what stands in the table, and nothing else."""
    rules = "".join(
        f"ip daddr {OUTSIDE} {protocol.lower()} dport {outside} dnat to {host}:{inside}\n"
        for (protocol, outside), (host, inside, _, _) in table.items()
    )
    chain = f"chain into {{\ntype nat hook prerouting priority -100\n{rules}}}\n"
    text = f"table ip mapped\ndelete table ip mapped\ntable ip mapped {{\n{chain}}}\n"
    subprocess.run(["nft", "-f", "-"], input=text.encode(), check=True)


def give(protocol, outside, host, inside, lease):
    with lock:
        count = table.get((protocol, outside), (0, 0, 0, 0))[3] + 1
        table[(protocol, outside)] = (host, inside, time.monotonic() + lease, count)
        nat()
    print(f"mapped {protocol} {outside} {inside} {count}", flush=True)


def take(protocol, outside):
    with lock:
        if table.pop((protocol, outside), None) is None:
            return False
        nat()
    print(f"unmapped {protocol} {outside}", flush=True)
    return True


def expire():
    while True:
        time.sleep(0.2)
        with lock:
            late = [key for key, (_, _, until, _) in table.items() if until < time.monotonic()]
        for key in late:
            take(*key)


def orders():
    """RFC 6886."""
    began = time.monotonic() - 100_000
    door = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    door.bind((INSIDE, ORDERS))
    while True:
        packet, who = door.recvfrom(2048)
        epoch = int(time.monotonic() - began)
        if packet[:1] != b"\0" or len(packet) < 2:
            # Another version, as PCP's is: that isn't spoken here.
            door.sendto(struct.pack(">BBHI", 0, 128, 1, epoch), who)
        elif packet[1] == 0:
            door.sendto(struct.pack(">BBHI", 0, 128, 0, epoch) + socket.inet_aton(OUTSIDE), who)
        elif packet[1] in (1, 2) and len(packet) == 12:
            inside, _, life = struct.unpack(">HHI", packet[4:])
            protocol, outside, life = ("UDP", "TCP")[packet[1] - 1], inside + 1000, min(life, LEASE)
            if life:
                give(protocol, outside, who[0], inside, life)
            else:
                take(protocol, outside)
            answer = struct.pack(">BBHIHHI", 0, 128 + packet[1], 0, epoch, inside, outside if life else 0, life)
            door.sendto(answer, who)


def searches():
    """SSDP."""
    ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    ear.bind((GROUP, SEARCHES))
    ear.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(GROUP) + socket.inet_aton(INSIDE))
    mouth = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    mouth.bind((INSIDE, 0))
    while True:
        packet, who = ear.recvfrom(2048)
        target = re.search(rb"ST: (\S*InternetGatewayDevice:1)\r\n", packet)
        if target:
            text = f"HTTP/1.1 200 OK\r\nST: {target[1].decode()}\r\nLOCATION: http://{INSIDE}:{DESCRIPTION}/root.xml\r\n\r\n"
            mouth.sendto(text.encode(), who)


class Device(http.server.BaseHTTPRequestHandler):
    """What answers over HTTP."""

    def log_message(self, *_):
        pass

    def say(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def do_GET(self):
        if self.path != "/root.xml":
            return self.say(404, "")
        service = f"<serviceType>{SERVICE}</serviceType><controlURL>/control</controlURL>"
        self.say(200, f"<root><device><serviceList><service>{service}</service></serviceList></device></root>")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        action = self.headers["SOAPAction"].strip('"').rsplit("#")[-1]
        of = lambda name: re.search(f"<{name}>(.*?)</{name}>", body)[1]
        fault = lambda code: self.say(500, f"<s:Fault><UPnPError><errorCode>{code}</errorCode></UPnPError></s:Fault>")
        values = ""
        if action == "GetStatusInfo":
            values = "<NewConnectionStatus>Connected</NewConnectionStatus>"
        elif action == "GetExternalIPAddress":
            values = f"<NewExternalIPAddress>{OUTSIDE}</NewExternalIPAddress>"
        elif action == "AddPortMapping":
            outside, inside = int(of("NewExternalPort")), int(of("NewInternalPort"))
            if outside == inside:
                return fault(718)
            give(of("NewProtocol"), outside, of("NewInternalClient"), inside, LEASE)
        elif action == "DeletePortMapping":
            if not take(of("NewProtocol"), int(of("NewExternalPort"))):
                return fault(714)
        elif action == "GetSpecificPortMappingEntry":
            with lock:
                known = table.get((of("NewProtocol"), int(of("NewExternalPort"))))
            # Some other device of the home has it.
            host, inside = known[:2] if known else ("10.213.0.99", 1)
            values = f"<NewInternalPort>{inside}</NewInternalPort><NewInternalClient>{host}</NewInternalClient><NewLeaseDuration>{LEASE}</NewLeaseDuration>"
        else:
            return fault(401)
        self.say(200, f"<s:Envelope><s:Body><u:{action}Response>{values}</u:{action}Response></s:Body></s:Envelope>")


def main():
    tasks = [expire]
    if HOW == "natpmp":
        tasks.append(orders)
    else:
        tasks += [searches, http.server.ThreadingHTTPServer((INSIDE, DESCRIPTION), Device).serve_forever]
    for task in tasks:
        threading.Thread(target=task, daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    HOW, INSIDE, OUTSIDE = sys.argv[1:4]
    LEASE = int(sys.argv[4])
    main()
