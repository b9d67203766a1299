"""Makes a .torrent from a file or folder, and prints what it holds as one line of JSON.

    mktorrent.py SOURCE OUT.torrent [--piece-size N] [--kind v1|v2|hybrid] [--tracker URL]... [--webseed URL]...
                                    [--private] [--name NAME]
    mktorrent.py --huge PIECES DIR OUT.torrent

With --huge: one sparse file of PIECES pieces of 16 KiB, all zeros but a few, whose hashes are written without
reading it. It shows what happens with a very large bitfield and very large metadata (regression R3).
"""

import argparse
import hashlib
import json
import os
import sys

import libtorrent as lt

PIECE_16K = 16 * 1024


def flags(path):
    return lt.file_storage.flag_executable if os.access(path, os.X_OK) and os.stat(path).st_mode & 0o100 else 0


def entries(source):
    """All files below `source` in sorted order, as (path in the torrent, size, flags)."""
    name = os.path.basename(os.path.normpath(source))
    if os.path.isfile(source):
        return [(name, os.path.getsize(source), flags(source))]
    found = []
    for folder, folders, files in os.walk(source):
        folders.sort()
        for file in sorted(files):
            full = os.path.join(folder, file)
            found.append((os.path.join(name, os.path.relpath(full, source)), os.path.getsize(full), flags(full)))
    return found


def flags_of(kind):
    return {
        "v1": lt.create_torrent.v1_only,
        "v2": lt.create_torrent.v2_only,
        "hybrid": 0,
    }[kind]


def describe(data):
    info = lt.torrent_info(lt.bdecode(data))
    hashes = info.info_hashes()
    return {
        "name": info.name(),
        "v1": str(hashes.v1) if hashes.has_v1() else None,
        "v2": str(hashes.v2) if hashes.has_v2() else None,
        "piece_length": info.piece_length(),
        "pieces": info.num_pieces(),
        "total_size": info.total_size(),
        "files": [[info.files().file_path(i), info.files().file_size(i)] for i in range(info.num_files())],
        "metadata_size": len(lt.bencode(lt.bdecode(data)[b"info"])),
    }


def make(args):
    files = lt.file_storage()
    for path, size, attributes in entries(args.source):
        files.add_file(path, size, attributes)
    torrent = lt.create_torrent(files, args.piece_size, flags_of(args.kind))
    for tier, url in enumerate(args.tracker):
        torrent.add_tracker(url, tier)
    for url in args.webseed:
        torrent.add_url_seed(url)
    if args.private:
        torrent.set_priv(True)
    lt.set_piece_hashes(torrent, os.path.dirname(os.path.abspath(args.source)))
    made = torrent.generate()
    if args.name:
        made[b"info"][b"name"] = args.name.encode()
    return lt.bencode(made)


def make_huge(pieces, folder):
    """A few pieces carry the text "piece N" over and over, the others are zeros (and take no disk space)."""
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "huge.bin")
    marked = sorted({0, 1, pieces // 3, pieces // 2, pieces - 1})
    zero = hashlib.sha1(bytes(PIECE_16K)).digest()
    hashes = bytearray(zero * pieces)
    with open(path, "wb") as file:
        file.truncate(pieces * PIECE_16K)
        for piece in marked:
            text = f"piece {piece}\n".encode()
            block = (text * (PIECE_16K // len(text) + 1))[:PIECE_16K]
            os.pwrite(file.fileno(), block, piece * PIECE_16K)
            hashes[piece * 20 : piece * 20 + 20] = hashlib.sha1(block).digest()
    info = {
        b"length": pieces * PIECE_16K,
        b"name": b"huge.bin",
        b"piece length": PIECE_16K,
        b"pieces": bytes(hashes),
    }
    return lt.bencode({b"info": info})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("source")
    parser.add_argument("out")
    parser.add_argument("--piece-size", type=int, default=256 * 1024)
    parser.add_argument("--kind", choices=["v1", "v2", "hybrid"], default="v1")
    parser.add_argument("--tracker", action="append", default=[])
    parser.add_argument("--webseed", action="append", default=[])
    parser.add_argument("--private", action="store_true")
    parser.add_argument("--name")
    parser.add_argument("--huge", type=int)
    args = parser.parse_args()
    data = make_huge(args.huge, args.source) if args.huge else make(args)
    with open(args.out, "wb") as out:
        out.write(data)
    print(json.dumps(describe(data)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
