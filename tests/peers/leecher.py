"""A libtorrent downloader for the tests and benchmarks: fetches everything from the given peers, or with
--lsd from whom it finds in the local network, prints
"done SECONDS CPU_SECONDS" and ends. Ends as well when its stdin closes, or at its limit (exit 1).

    leecher.py TORRENT_OR_MAGNET SAVE_DIR --peer ADDR:PORT... [--lsd] [--listen ADDR:PORT] [--limit SECONDS] [--no-utp]
               [--no-tcp] [--plain | --encrypt] [--enc-level WAYS] [--dht-node ADDR:PORT] [--download-limit BYTES_PER_S]
               [--agent NAME]

With --plain it doesn't try encryption first, which costs a minute at a peer that has none. With --encrypt it takes and
makes encrypted connections only; --enc-level says what it takes after the handshake: plain, rc4 or both.
With --dht-node it finds further peers through the DHT, which it enters by this node.
"""

import argparse
import os
import resource
import sys
import threading
import time

import libtorrent as lt


# libtorrent's numbers for what may follow the handshake of encryption.
ENC_LEVELS = {"plain": 1, "rc4": 2, "both": 3}


def watch_stdin():
    """Ends the process when whoever started it is gone."""
    while sys.stdin.readline():
        pass
    os._exit(1)


def connect(handle, peer):
    """Dials ADDR:PORT, an IPv6 address in brackets."""
    host, port = peer.rsplit(":", 1)
    handle.connect_peer((host.strip("[]"), int(port)))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("source")
    parser.add_argument("save")
    parser.add_argument("--peer", action="append", default=[])
    parser.add_argument("--listen", default="127.0.0.1:0")
    parser.add_argument("--lsd", action="store_true")
    parser.add_argument("--limit", type=float, default=120)
    parser.add_argument("--no-utp", action="store_true")
    parser.add_argument("--no-tcp", action="store_true")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--encrypt", action="store_true")
    parser.add_argument("--enc-level", choices=ENC_LEVELS, default="both")
    parser.add_argument("--dht-node")
    parser.add_argument("--download-limit", type=int, default=0)
    parser.add_argument("--agent", default="torrentfs-test-leecher")
    args = parser.parse_args()
    threading.Thread(target=watch_stdin, daemon=True).start()

    session = lt.session(
        {
            "listen_interfaces": args.listen,
            "user_agent": args.agent,
            "enable_upnp": False,
            "enable_natpmp": False,
            "enable_lsd": args.lsd,
            "enable_dht": bool(args.dht_node),
            "dht_bootstrap_nodes": "",
            # A DHT of several nodes on one address, which libtorrent takes for an attack unless told otherwise.
            "dht_restrict_routing_ips": False,
            "dht_restrict_search_ips": False,
            "dht_prefer_verified_node_ids": False,
            "dht_enforce_node_id": False,
            "dht_ignore_dark_internet": False,
            "allow_multiple_connections_per_ip": True,
            "enable_incoming_utp": not args.no_utp,
            "enable_outgoing_utp": not args.no_utp,
            "enable_incoming_tcp": not args.no_tcp,
            "enable_outgoing_tcp": not args.no_tcp,
            "out_enc_policy": 2 if args.plain else 0 if args.encrypt else 1,
            "in_enc_policy": 0 if args.encrypt else 1,
            "allowed_enc_level": ENC_LEVELS[args.enc_level],
            "min_reconnect_time": 1,
            "max_metadata_size": 64 * 1024 * 1024,
            "alert_mask": int(lt.alert.category_t.storage_notification),
        }
    )
    if args.dht_node:
        host, port = args.dht_node.rsplit(":", 1)
        session.add_dht_node((host.strip("[]"), int(port)))
    if args.source.startswith("magnet:"):
        params = lt.parse_magnet_uri(args.source)
    else:
        params = lt.add_torrent_params()
        params.ti = lt.torrent_info(args.source)
    params.save_path = args.save
    params.flags &= ~lt.torrent_flags.auto_managed
    params.flags &= ~lt.torrent_flags.paused

    start = time.monotonic()
    handle = session.add_torrent(params)
    if args.download_limit:
        # On the torrent: the session-wide limits skip local peers.
        handle.set_download_limit(args.download_limit)
    for peer in args.peer:
        connect(handle, peer)
    again = start + 2
    while not handle.status().is_seeding:
        now = time.monotonic()
        if now - start > args.limit:
            status = handle.status()
            print(f"failed: {status.progress:.3f} after {args.limit} s, {status.num_peers} peers", flush=True)
            os._exit(1)
        if now > again and handle.status().num_peers < max(1, len(args.peer)):
            again = now + 2
            if args.dht_node:
                handle.force_dht_announce()
            for peer in args.peer:
                connect(handle, peer)
        time.sleep(0.01)
    # Pieces may still wait for their write: without this the end of the process would lose them.
    handle.flush_cache()
    flushed = False
    while not flushed and time.monotonic() - start < args.limit:
        session.wait_for_alert(1000)
        flushed = any(isinstance(alert, lt.cache_flushed_alert) for alert in session.pop_alerts())
    seconds = time.monotonic() - start
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(f"done {seconds:.3f} {usage.ru_utime + usage.ru_stime:.2f}", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
