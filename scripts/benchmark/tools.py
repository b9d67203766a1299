"""What every part of the benchmarks uses: programs started and ended, what the kernel says of them, files read through.

Parts: processes (`run_python`, `ask`, `end`), readings (`cpu_seconds`, `memory_mib`, `Watch`), waiting and page cache.
It knows nothing of torrents or rows.
"""

import os
import pathlib
import platform
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PEERS = ROOT / "tests" / "peers"
MIB = 1 << 20
# One read of a sequential reader: large enough that its own system calls cost nothing.
CHUNK = MIB
# A peak of memory lasts longer than this.
WATCH_STEP = 0.02


class Failed(Exception):
    """Somebody who is measured didn't do it; the run goes on without that figure."""


def run_python(script, *args, **more):
    command = [sys.executable, PEERS / script, *map(str, args)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **more)


def ask(process, question):
    """Sends a helper one line and returns the words of its answer."""
    process.stdin.write(question + "\n")
    process.stdin.flush()
    return process.stdout.readline().split()


def end(process):
    """Ends a helper by closing its stdin."""
    process.stdin.close()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


def cpu_seconds(pid):
    """User and system time of a process so far, its ended threads included; 0 if it is gone."""
    try:
        # Linux numbers the clock of a process's CPU time so (clock_getcpuclockid(3)); /proc only counts ticks.
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


def memory_mib(pid, field="RssAnon"):
    try:
        for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


class Watch:
    """Follows the anonymous memory of a process while the block runs; `peak` is in MiB."""

    def __init__(self, pid):
        self.pid, self.peak = pid, 0.0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.follow, daemon=True)

    def follow(self):
        while True:
            self.peak = max(self.peak, memory_mib(self.pid))
            if self.over.wait(WATCH_STEP):
                return

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


def read_through(stream, size):
    """Reads `size` bytes of a stream in order. Returns the seconds it took."""
    buffer = memoryview(bytearray(CHUNK))
    start, total = time.monotonic(), 0
    while total < size:
        got = stream.readinto(buffer[: min(CHUNK, size - total)])
        if not got:
            raise Failed(f"the file ended at {total} of {size} bytes")
        total += got
    return time.monotonic() - start


def freshen(path, size):
    """Writes and removes a file: what a virtual machine's memory and disk take when they are first used is then paid for,
    and not by whoever comes first."""
    block = bytes(MIB)
    with open(path, "wb", buffering=0) as out:
        for _ in range(size // MIB):
            out.write(block)
    path.unlink()


def same(one, other):
    with open(one, "rb", buffering=0) as left, open(other, "rb", buffering=0) as right:
        while True:
            a, b = left.read(CHUNK), right.read(CHUNK)
            if a != b:
                return False
            if not a:
                return True


def forget_pages(path):
    """Drops a file's pages from the page cache, as far as the kernel follows; what isn't on disk yet is written."""
    with open(path, "rb") as file:
        try:
            os.fsync(file.fileno())
        except OSError:
            # A read-only filesystem in user space has nothing to write.
            pass
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def is_mounted(point):
    with open("/proc/self/mountinfo") as lines:
        return any(line.split()[4] == str(point) for line in lines)


def await_state(what, limit, check):
    stop = time.monotonic() + limit
    while not check():
        if time.monotonic() > stop:
            raise Failed(f"{what}: not in {limit} s")
        time.sleep(0.002)


def machine():
    model = "unknown processor"
    with open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    with open("/proc/meminfo") as lines:
        memory = int(lines.readline().split()[1]) / (1 << 20)
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, Linux {platform.release()}"
