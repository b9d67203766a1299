"""A libtorrent seeder for the tests and benchmarks. Prints "ready PORT" when it seeds, and ends when its stdin
closes, so that it is never left behind.

    seeder.py TORRENT DATA_DIR [--listen ADDR:PORT] [--upload-limit BYTES_PER_S] [--no-utp] [--no-tcp]
              [--encrypt] [--enc-level WAYS] [--dht-nodes N | --dht-node ADDR:PORT] [--lsd] [--verify] [--send-buffer BYTES] [--metadata-only]

With --dht-nodes a private DHT of N nodes comes up on loopback, the seeder announces itself there, and the line
becomes "ready PORT dht PORT": the second is a node to bootstrap from. With --dht-node it announces itself in the DHT that
it enters by this node.
With --encrypt it takes and makes encrypted connections only; --enc-level says what it takes after the handshake: plain,
rc4 or both.
With --lsd it announces itself in the local network.
With --metadata-only it has no data, and tells others what the torrent holds.
The data is trusted as it is (seed mode): altered data is how a seeder is made to send garbage.
"""

import argparse
import os
import sys
import time
import warnings

import libtorrent as lt

# `session.status()` is deprecated, but the only way to see the size of a DHT without an alert loop.
warnings.simplefilter("ignore", DeprecationWarning)

# How long a private DHT may take to come up, in seconds.
DHT_LIMIT = 60
# libtorrent's numbers for what may follow the handshake of encryption.
ENC_LEVELS = {"plain": 1, "rc4": 2, "both": 3}


def settings(listen, args, dht):
    found = {
        "listen_interfaces": listen,
        "enable_upnp": False,
        "enable_natpmp": False,
        "enable_lsd": args.lsd,
        "enable_dht": dht,
        "dht_bootstrap_nodes": "",
        "allow_multiple_connections_per_ip": True,
        "unchoke_slots_limit": -1,
        "active_limit": -1,
        "active_seeds": -1,
        "max_metadata_size": 64 * 1024 * 1024,
        "enable_incoming_utp": not args.no_utp,
        "enable_outgoing_utp": not args.no_utp,
        "enable_incoming_tcp": not args.no_tcp,
        "enable_outgoing_tcp": not args.no_tcp,
        "alert_mask": int(lt.alert.category_t.error_notification | lt.alert.category_t.status_notification),
        "user_agent": "torrentfs-test-seeder",
    }
    if args.send_buffer:
        found["send_socket_buffer_size"] = args.send_buffer
    if args.encrypt:
        found["in_enc_policy"] = 0
        found["out_enc_policy"] = 0
    if args.enc_level:
        found["allowed_enc_level"] = ENC_LEVELS[args.enc_level]
    if dht:
        found.update(dht_settings(listen))
    return found


def dht_settings(listen):
    """Of a node in a private DHT, and nothing else."""
    found = {
        "listen_interfaces": listen,
        "enable_upnp": False,
        "enable_natpmp": False,
        "enable_dht": True,
        "dht_bootstrap_nodes": "",
        "dht_announce_interval": 10,
        "dht_upload_rate_limit": 1_000_000,
        "dht_block_ratelimit": 10_000,
    }
    # A DHT of many nodes on one address, which libtorrent takes for an attack unless told otherwise.
    for name in (
        "dht_restrict_routing_ips",
        "dht_restrict_search_ips",
        "dht_prefer_verified_node_ids",
        "dht_enforce_node_id",
        "dht_ignore_dark_internet",
        "dht_extended_routing_table",
    ):
        found[name] = False
    return found


def settle(what, limit, check):
    """Waits until `check` is true; ends the program with a message otherwise."""
    end = time.monotonic() + limit
    while not check():
        if time.monotonic() > end:
            print(f"failed: {what} took more than {limit} s", flush=True)
            os._exit(1)
        time.sleep(0.02)


def private_dht(args):
    """Brings up `args.dht_nodes` DHT nodes that know each other. Returns the sessions; the first is the router."""
    nodes = [lt.session(settings("127.0.0.1:0", args, True)) for _ in range(args.dht_nodes)]
    for node in nodes:
        settle("listening", 10, lambda: node.listen_port() != 0)
    for node in nodes[1:]:
        node.add_dht_node(("127.0.0.1", nodes[0].listen_port()))
    for node in nodes:
        settle("the private DHT", DHT_LIMIT, lambda: node.status().dht_nodes >= max(1, args.dht_nodes // 2))
    return nodes


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("torrent")
    parser.add_argument("data")
    parser.add_argument("--listen", default="127.0.0.1:0")
    parser.add_argument("--upload-limit", type=int, default=0)
    parser.add_argument("--no-utp", action="store_true")
    parser.add_argument("--no-tcp", action="store_true")
    parser.add_argument("--encrypt", action="store_true")
    parser.add_argument("--enc-level", choices=ENC_LEVELS)
    parser.add_argument("--dht-nodes", type=int, default=0)
    parser.add_argument("--dht-node")
    parser.add_argument("--lsd", action="store_true")
    parser.add_argument("--verify", action="store_true", help="hash the data first, instead of trusting it")
    parser.add_argument("--send-buffer", type=int, default=0, help="the kernel's buffer of each connection, in bytes")
    parser.add_argument("--metadata-only", action="store_true")
    args = parser.parse_args()

    nodes = private_dht(args) if args.dht_nodes else []
    session = lt.session(settings(args.listen, args, bool(nodes or args.dht_node)))

    params = lt.add_torrent_params()
    params.ti = lt.torrent_info(args.torrent)
    params.save_path = args.data
    params.flags &= ~lt.torrent_flags.auto_managed
    params.flags &= ~lt.torrent_flags.paused
    if args.metadata_only:
        # It fetches nothing either.
        params.flags |= lt.torrent_flags.upload_mode
        params.save_path = os.path.join(args.data, "none")
    elif not args.verify:
        params.flags |= lt.torrent_flags.seed_mode
    handle = session.add_torrent(params)
    if args.upload_limit:
        # On the torrent: the session-wide limits skip local peers.
        handle.set_upload_limit(args.upload_limit)

    settle("listening", 10, lambda: session.listen_port() != 0)
    if args.metadata_only:
        settle("starting", 10, lambda: handle.status().state == lt.torrent_status.downloading)
    else:
        settle("seeding", 120, lambda: handle.status().is_seeding)

    line = f"ready {session.listen_port()}"
    if args.dht_node:
        host, port = args.dht_node.rsplit(":", 1)
        session.add_dht_node((host.strip("[]"), int(port)))
        settle("the seeder's DHT", DHT_LIMIT, lambda: session.status().dht_nodes >= 1)
        handle.force_dht_announce()
    if nodes:
        for node in nodes[:3]:
            session.add_dht_node(("127.0.0.1", node.listen_port()))
        settle("the seeder's DHT", DHT_LIMIT, lambda: session.status().dht_nodes >= 1)

        def announced():
            handle.force_dht_announce()
            time.sleep(0.3)
            return any(node.status().dht_torrents > 0 for node in nodes)

        settle("the announce in the DHT", DHT_LIMIT, announced)
        line += f" dht {nodes[0].listen_port()}"
    print(line, flush=True)

    for command in sys.stdin:
        words = command.split()
        if words[:1] == ["limit"]:
            handle.set_upload_limit(int(words[1]))
        elif words[:1] == ["uploaded"]:
            print(f"uploaded {handle.status().total_payload_upload}", flush=True)
        elif words[:1] == ["peers"]:
            print(f"peers {handle.status().num_peers}", flush=True)
    # Without the destructors: they wait for trackers, and nobody is there to hear of it.
    os._exit(0)


if __name__ == "__main__":
    main()
