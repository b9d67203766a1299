"""Readers that ordinary tools don't offer: each prints "waiting" before it reads, and then what came of it.

    reader.py pread PATH OFFSET LENGTH [--by WAY] [--handle SIG,..] [--raise SIG,..]
    reader.py mmap PATH                   the SHA-256 of the whole file, read through a mapping
    reader.py fault PATH OFFSET [--handle SIG,..]   touches one byte of a mapping
    reader.py many PATH COUNT STRIDE      COUNT threads, each reading 4 KiB at its own offset
    reader.py exec PATH                   runs the file

"pread" calls the C library itself, since Python would silently retry a read that ends with EINTR. Ways are pread, direct
(with O_DIRECT), sendfile and splice (both to a pipe, of as many bytes as fit into one).
With --handle, handlers that only count; with --raise, handlers that end the program with exit 3.
"""

import argparse
import ctypes
import errno
import hashlib
import mmap
import os
import signal
import sys
import threading

caught = 0


def count(_signal, _frame):
    global caught
    caught += 1


def leave(_signal, _frame):
    os._exit(3)


def signals(names):
    return [getattr(signal, "SIG" + name) for name in names.split(",") if name]


def pread(args):
    for number in signals(args.handle):
        signal.signal(number, count)
    for number in signals(getattr(args, "raise")):
        signal.signal(number, leave)
    libc = ctypes.CDLL(None, use_errno=True)
    number, size, pointer = ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p
    for function, arguments in [
        (libc.pread, [number, pointer, size, ctypes.c_int64]),
        (libc.sendfile, [number, number, pointer, size]),
        (libc.splice, [number, pointer, number, pointer, size, ctypes.c_uint]),
    ]:
        function.argtypes, function.restype = arguments, ctypes.c_ssize_t
    fd = os.open(args.path, os.O_RDONLY | (os.O_DIRECT if args.by == "direct" else 0))
    # Of whole pages, as O_DIRECT may ask for.
    buffer = mmap.mmap(-1, args.length)
    start = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    offset = ctypes.c_int64(args.offset)
    taken, given = os.pipe()
    calls = {
        "pread": lambda: libc.pread(fd, start, args.length, args.offset),
        "direct": lambda: libc.pread(fd, start, args.length, args.offset),
        "sendfile": lambda: libc.sendfile(given, fd, ctypes.addressof(offset), args.length),
        "splice": lambda: libc.splice(fd, ctypes.addressof(offset), given, None, args.length, 0),
    }
    print("waiting", flush=True)
    got = calls[args.by]()
    error = ctypes.get_errno()
    if got < 0:
        print(f"error {errno.errorcode.get(error, error)} signals {caught}", flush=True)
    else:
        data = os.read(taken, got) if args.by in ("sendfile", "splice") else buffer[:got]
        print(f"read {got} {hashlib.sha256(data).hexdigest()} signals {caught}", flush=True)


def map_whole(args):
    with open(args.path, "rb") as file:
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            print("waiting", flush=True)
            print(f"mapped {hashlib.sha256(mapped).hexdigest()}", flush=True)


def fault(args):
    for number in signals(args.handle):
        signal.signal(number, count)
    with open(args.path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        print("waiting", flush=True)
        print(f"byte {mapped[args.offset]} signals {caught}", flush=True)


def many(args):
    fd = os.open(args.path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    results = []

    def one(number):
        try:
            results.append(len(os.pread(fd, 4096, number * args.stride)))
        except OSError as error:
            results.append(errno.errorcode.get(error.errno, error.errno))

    threading.stack_size(256 * 1024)
    threads = [threading.Thread(target=one, args=(number,)) for number in range(args.count)]
    for thread in threads:
        thread.start()
    print("waiting", flush=True)
    for thread in threads:
        thread.join()
    tally = {str(result): results.count(result) for result in set(results)}
    print("done " + " ".join(f"{result}={number}" for result, number in sorted(tally.items())), flush=True)


def execute(args):
    print("waiting", flush=True)
    os.execv(args.path, [args.path])


def main():
    parser = argparse.ArgumentParser()
    kinds = parser.add_subparsers(dest="kind", required=True)
    kind = kinds.add_parser("pread")
    kind.add_argument("path")
    kind.add_argument("offset", type=int)
    kind.add_argument("length", type=int)
    kind.add_argument("--by", choices=["pread", "direct", "sendfile", "splice"], default="pread")
    kind.add_argument("--handle", default="")
    kind.add_argument("--raise", default="")
    kind.set_defaults(run=pread)
    kind = kinds.add_parser("mmap")
    kind.add_argument("path")
    kind.set_defaults(run=map_whole)
    kind = kinds.add_parser("fault")
    kind.add_argument("path")
    kind.add_argument("offset", type=int)
    kind.add_argument("--handle", default="")
    kind.set_defaults(run=fault)
    kind = kinds.add_parser("many")
    kind.add_argument("path")
    kind.add_argument("count", type=int)
    kind.add_argument("stride", type=int)
    kind.set_defaults(run=many)
    kind = kinds.add_parser("exec")
    kind.add_argument("path")
    kind.set_defaults(run=execute)
    args = parser.parse_args()
    args.run(args)
    sys.exit(0)


if __name__ == "__main__":
    main()
