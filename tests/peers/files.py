"""An HTTP server that gives parts of files, as webseeds do. Prints "ready PORT" and ends when its stdin closes.

    files.py ADDRESS FOLDER MORE...

It serves the files of the folder, and each of MORE by its own name.
"""

import http.server
import os
import re
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Files(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        name = unquote(urlsplit(self.path).path).lstrip("/")
        path = next((more for more in MORE if more.name == name), FOLDER / name)
        if not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        whole = path.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(wanted[1]), min(int(wanted[2]), len(whole) - 1)) if wanted else (0, len(whole) - 1)
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(whole)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        self.wfile.write(whole[first : last + 1])


if __name__ == "__main__":
    FOLDER, MORE = Path(sys.argv[2]), [Path(more) for more in sys.argv[3:]]
    server = http.server.ThreadingHTTPServer((sys.argv[1], 0), Files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"ready {server.server_address[1]}", flush=True)
    sys.stdin.read()
    os._exit(0)
