"""A private DHT of libtorrent nodes for the tests. Prints "ready PORT" when they know each other: where one of them listens.
Ends when its stdin closes.

    dht.py ADDRESS [--nodes N]

Commands on stdin: "announced" waits until somebody has announced a torrent, and prints "announced".
"""

import argparse
import os
import sys

import libtorrent as lt

# It would lie beside the scripts.
sys.dont_write_bytecode = True

from seeder import DHT_LIMIT, dht_settings, settle

# How long somebody may take until he announces something, in seconds: a client's own clock.
ANNOUNCE_LIMIT = 240


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--nodes", type=int, default=4)
    args = parser.parse_args()
    address = args.address
    listen = f"[{address}]:0" if ":" in address else f"{address}:0"
    nodes = [lt.session(dht_settings(listen)) for _ in range(args.nodes)]
    for node in nodes:
        settle("listening", 10, lambda: node.listen_port() != 0)
    for node in nodes[1:]:
        node.add_dht_node((address, nodes[0].listen_port()))
    for node in nodes:
        settle("the private DHT", DHT_LIMIT, lambda: node.status().dht_nodes >= max(1, args.nodes // 2))
    print(f"ready {nodes[0].listen_port()}", flush=True)
    for command in sys.stdin:
        if command.split()[:1] == ["announced"]:
            settle("an announce", ANNOUNCE_LIMIT, lambda: any(node.status().dht_torrents > 0 for node in nodes))
            print("announced", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
