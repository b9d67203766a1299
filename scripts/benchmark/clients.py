"""Who is measured, behind one interface: start it on a swarm, wait until the file can be opened, read, stop.

Parts: `Client` (the interface and the process), `Torrentfs` and `Btfs` (a file in a mount), `Rqbit` (HTTP), and the two
that only run through: `Cat` and `ToDisk`. A reader gives `at(offset, length)` for seeks and `stream(offset)` for reading
in order. Rivals run with what makes them find exactly the given peers and nothing else, otherwise as they come.
"""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.parse

from .tools import Failed, await_state, cpu_seconds, end, is_mounted, run_python

READY_LIMIT = 60
# A read that takes longer counts as never.
READ_LIMIT = 60
STOP_LIMIT = 15
# Whoever is measured is killed after this long: reads that hang in a mount can't be ended otherwise.
RUN_LIMIT = 300


class Client:
    """A program that runs while it is measured; a context manager that leaves nothing behind."""

    def __init__(self, program, swarm, folder, magnet=False):
        self.program, self.swarm, self.folder, self.magnet = program, swarm, folder, magnet
        folder.mkdir(parents=True)
        self.process = None
        self.started = None

    def __enter__(self):
        self.prepare()
        self.started = time.monotonic()
        with open(self.folder / "log", "wb") as log:
            self.process = subprocess.Popen(
                list(map(str, self.command())), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder
            )
        self.watchdog = threading.Timer(RUN_LIMIT, self.process.kill)
        self.watchdog.daemon = True
        self.watchdog.start()
        try:
            self.await_ready()
        except BaseException:
            self.leave()
            raise
        self.ready = time.monotonic() - self.started
        return self

    def __exit__(self, *_):
        self.leave()

    def leave(self):
        try:
            self.stop()
        finally:
            self.watchdog.cancel()
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            shutil.rmtree(self.folder, ignore_errors=True)

    def prepare(self):
        pass

    def stop(self):
        """Asks the program to end. Returns the seconds it took."""
        begin = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_LIMIT)
            except subprocess.TimeoutExpired:
                pass
        return time.monotonic() - begin

    @property
    def pid(self):
        return self.process.pid

    def cpu(self):
        return cpu_seconds(self.pid)

    def since_start(self):
        return time.monotonic() - self.started

    def check_alive(self):
        if self.process.poll() is not None:
            text = (self.folder / "log").read_text(errors="replace").strip().splitlines()
            raise Failed(f"it ended with {self.process.returncode}: {' / '.join(text[-3:])}")


class Mounted(Client):
    """Those whose file stands in a mount."""

    def prepare(self):
        self.point = self.folder / "mnt"
        self.data = self.folder / "data"
        self.point.mkdir()
        self.data.mkdir()
        self.path = self.point / self.swarm.torrent.file

    def await_ready(self):
        def there():
            self.check_alive()
            return is_mounted(self.point) and self.path.exists()

        await_state("the file in the mount", READY_LIMIT, there)

    def reader(self, limit=READ_LIMIT):
        return FileReader(self.path, limit)

    def stored(self):
        """Where the program keeps the bytes of the file."""
        return max(self.data.rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else -1)

    def leave(self):
        try:
            super().leave()
        finally:
            if is_mounted(self.point):
                subprocess.run(["umount", "-l", self.point], check=False, capture_output=True)
                shutil.rmtree(self.folder, ignore_errors=True)


class FileReader:
    """Reads a file of a mount. A read past its limit counts as failed when it comes back: a mount answers at last, or
    the program is killed."""

    def __init__(self, path, limit):
        self.path, self.limit = path, limit
        # Opened by the first `at`: who only streams leaves no handle behind.
        self.fd = None

    def at(self, offset, length):
        begin = time.monotonic()
        if self.fd is None:
            self.fd = os.open(self.path, os.O_RDONLY)
        got = os.pread(self.fd, length, offset)
        if len(got) != length:
            raise Failed(f"{len(got)} bytes of {length} at {offset}")
        if time.monotonic() - begin > self.limit:
            raise Failed(f"{length} bytes at {offset}: not in {self.limit} s")
        return got

    def stream(self, offset=0):
        file = open(self.path, "rb", buffering=0)
        file.seek(offset)
        return file

    def close(self):
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


class Torrentfs(Mounted):
    name = "torrentfs"
    # More on the command line.
    options = ()

    def command(self):
        peers = [] if self.magnet else [part for address in self.swarm.addresses for part in ("--peer", address)]
        source = self.swarm.magnet() if self.magnet else self.swarm.torrent.path
        options = ["--cache-dir", self.data, "--listen", "127.0.0.1:0", "--no-dht", "--no-lsd"]
        options += ["--no-port-mapping", "--read-timeout", f"{READ_LIMIT}s", *self.options]
        return [self.program, "mount", *options, *peers, source, self.point]


class Btfs(Mounted):
    """btfs takes no peers: by magnet link they stand in the link, by .torrent a tracker says them."""

    name = "btfs"

    def command(self):
        source = self.swarm.magnet() if self.magnet else self.swarm.tracked(self.folder)
        return [self.program, "-f", f"--data-directory={self.data}", source, self.point]

    def stop(self):
        begin = time.monotonic()
        subprocess.run(["umount", self.point], check=False, capture_output=True)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
        return time.monotonic() - begin


class Rqbit(Client):
    """rqbit's server and its HTTP stream. It also downloads the rest in the background, as it always does."""

    name = "rqbit"

    def prepare(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.data = self.folder / "data"

    def command(self):
        options = ["-v", "error", "--http-api-listen-addr", f"127.0.0.1:{self.port}", "--disable-dht", "--disable-lsd"]
        options += ["--disable-trackers", "--disable-tcp-listen", "--disable-upnp-port-forward"]
        options += ["--http-api-max-upload-size", 64 << 20]
        return [self.program, *options, "server", "start", "--disable-persistence", self.data]

    def await_ready(self):
        body = self.swarm.magnet().encode() if self.magnet else self.swarm.torrent.path.read_bytes()
        peers = urllib.parse.quote(",".join(self.swarm.addresses))
        answer = {}

        def added():
            self.check_alive()
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=READY_LIMIT)
            try:
                connection.request("POST", f"/torrents?overwrite=true&initial_peers={peers}", body)
                response = connection.getresponse()
                text = response.read()
            except ConnectionRefusedError:
                return False
            except (OSError, http.client.HTTPException) as error:
                raise Failed(f"adding the torrent: {error!r}") from error
            finally:
                connection.close()
            if response.status != 200:
                raise Failed(f"adding the torrent: {response.status} {text[:200]!r}")
            answer.update(json.loads(text))
            return True

        await_state("the HTTP server", READY_LIMIT, added)
        self.stream_path = f"/torrents/{answer['id']}/stream/0"

    def reader(self, limit=READ_LIMIT):
        return HttpReader(self.port, self.stream_path, limit)

    def stored(self):
        return max(self.data.rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else -1)


class HttpReader:
    """Ranges of a file by HTTP, over one connection; each stream has its own."""

    def __init__(self, port, path, limit):
        self.port, self.path, self.limit = port, path, limit
        self.connection = None

    def get(self, connection, span):
        limit = time.monotonic() + self.limit
        while True:
            try:
                connection.request("GET", self.path, headers={"Range": f"bytes={span}"})
                response = connection.getresponse()
                if response.status in (200, 206):
                    return response
                # The torrent is still being prepared.
                response.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                raise Failed(f"{span}: {error!r}") from error
            if time.monotonic() > limit:
                raise Failed(f"{span}: status {response.status} for {self.limit} s")
            time.sleep(0.002)

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.limit)

    def at(self, offset, length):
        self.connection = self.connection or self.connect()
        try:
            got = self.get(self.connection, f"{offset}-{offset + length - 1}").read()
        except (OSError, http.client.HTTPException) as error:
            self.connection.close()
            raise Failed(f"{length} bytes at {offset}: {error!r}") from error
        if len(got) != length:
            raise Failed(f"{len(got)} bytes of {length} at {offset}")
        return got

    def stream(self, offset=0):
        connection = self.connect()
        response = self.get(connection, f"{offset}-")
        return HttpStream(connection, response)

    def close(self):
        if self.connection:
            self.connection.close()


class HttpStream:
    def __init__(self, connection, response):
        self.connection, self.response = connection, response

    def readinto(self, buffer):
        try:
            return self.response.readinto(buffer)
        except (OSError, http.client.HTTPException) as error:
            raise Failed(f"the stream: {error!r}") from error

    def close(self):
        self.response.close()
        self.connection.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Cat:
    """`torrentfs cat`: no mount, everything to its standard output."""

    name = "torrentfs cat"

    @staticmethod
    def is_there(program):
        return subprocess.run([program, "cat", "--help"], capture_output=True, check=False).returncode == 0

    def __init__(self, program, swarm, folder):
        self.folder = folder
        folder.mkdir(parents=True)
        peers = [part for address in swarm.addresses for part in ("--peer", address)]
        options = ["--cache-dir", folder / "cache", "--listen", "127.0.0.1:0", "--no-dht"]
        self.command = [program, "cat", *options, *peers, swarm.torrent.path, swarm.torrent.file]

    def __enter__(self):
        with open(self.folder / "log", "wb") as log:
            self.process = subprocess.Popen(
                list(map(str, self.command)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, bufsize=0
            )
        self.pid = self.process.pid
        return self

    def __exit__(self, *_):
        self.process.stdout.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def cpu(self):
        return cpu_seconds(self.pid)


class ToDisk:
    """libtorrent downloading everything to disk; over TCP and without encryption, which is its fastest, unless told."""

    name = "libtorrent to disk"
    # More on the command line.
    options = ("--no-utp", "--plain")

    def __init__(self, swarm, folder):
        self.swarm, self.folder = swarm, folder
        folder.mkdir(parents=True)

    def __enter__(self):
        peers = [part for address in self.swarm.addresses for part in ("--peer", address)]
        self.process = run_python(
            "leecher.py", self.swarm.torrent.path, self.folder, *peers, "--limit", 300, *self.options
        )
        self.pid = self.process.pid
        return self

    def __exit__(self, *_):
        end(self.process)
        shutil.rmtree(self.folder, ignore_errors=True)

    def await_done(self):
        """Returns the seconds and the CPU seconds it took."""
        words = self.process.stdout.readline().split()
        if words[:1] != ["done"]:
            raise Failed(f"libtorrent: {' '.join(words)}")
        return float(words[1]), float(words[2])
