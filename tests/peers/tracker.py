"""A tracker over HTTP for the tests, on a host of theirs: it tells everybody of the same peers, and asks to be asked again
soon. Prints "ready PORT" and ends when its stdin closes.

    tracker.py ADDRESS PEER_ADDR:PORT...
"""

import http.server
import os
import socket
import struct
import sys
import threading

INTERVAL = 5


def compact(peers, family):
    out = b""
    for peer in peers:
        host, port = peer.rsplit(":", 1)
        host = host.strip("[]")
        if (":" in host) == (family == socket.AF_INET6):
            out += socket.inet_pton(family, host) + struct.pack(">H", int(port))
    return out


def main():
    four, six = (compact(sys.argv[2:], family) for family in (socket.AF_INET, socket.AF_INET6))
    body = b"d8:intervali%de12:min intervali%de5:peers%d:%s6:peers6%d:%se" % (
        INTERVAL,
        INTERVAL,
        len(four),
        four,
        len(six),
        six,
    )

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer((sys.argv[1], 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"ready {server.server_port}", flush=True)
    while sys.stdin.readline():
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
