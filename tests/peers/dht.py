"""A private DHT of libtorrent nodes for the tests. Prints "ready PORT" when they know each other: where one of them listens.
Ends when its stdin closes.

    dht.py ADDRESS... [--nodes N]

The nodes have the addresses in turn: who walks through the network may ask only one of each neighbourhood.

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
    parser.add_argument("addresses", metavar="ADDRESS", nargs="+")
    parser.add_argument("--nodes", type=int, default=4)
    args = parser.parse_args()
    addresses = [args.addresses[number % len(args.addresses)] for number in range(args.nodes)]
    nodes = [lt.session(dht_settings(f"[{at}]:0" if ":" in at else f"{at}:0")) for at in addresses]
    for node in nodes:
        settle("listening", 10, lambda: node.listen_port() != 0)
    for node in nodes[1:]:
        node.add_dht_node((addresses[0], nodes[0].listen_port()))
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
