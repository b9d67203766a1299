"""Several libtorrent clients in one process, each with a session and an address of its own, for the tests of whole swarms:
each fetches everything from whom a tracker names, and goes on serving. Prints "ready", and ends when its stdin closes.

    swarm.py TORRENT SAVE_DIR --count N --tracker URL --upload-limit BYTES_PER_S [--network A.B.C]

The clients are at A.B.C.1 and on, and save into SAVE_DIR/1 and on. They speak TCP without encryption.

The command "moved" on stdin prints "moved SENT:RECEIVED SENT:RECEIVED ...", payload bytes, in their order.
"""

import argparse
import os
import sys

import libtorrent as lt


def settings(address):
    return {
        "listen_interfaces": f"{address}:0",
        "enable_upnp": False,
        "enable_natpmp": False,
        "enable_lsd": False,
        "enable_dht": False,
        "enable_incoming_utp": False,
        "enable_outgoing_utp": False,
        "in_enc_policy": 2,
        "out_enc_policy": 2,
        "min_reconnect_time": 1,
        # Downloading and seeding count as active alike, and there is one torrent.
        "active_limit": -1,
        "active_seeds": -1,
        "alert_mask": 0,
    }


def start(args, number):
    session = lt.session(settings(f"{args.network}.{number}"))
    params = lt.add_torrent_params()
    params.ti = lt.torrent_info(args.torrent)
    params.trackers = [args.tracker]
    params.save_path = os.path.join(args.save, str(number))
    params.flags &= ~lt.torrent_flags.auto_managed
    params.flags &= ~lt.torrent_flags.paused
    handle = session.add_torrent(params)
    # On the torrent: the session-wide limits skip local peers.
    handle.set_upload_limit(args.upload_limit)
    return session, handle


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("torrent")
    parser.add_argument("save")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--tracker", required=True)
    parser.add_argument("--upload-limit", type=int, required=True)
    parser.add_argument("--network", default="127.0.4")
    args = parser.parse_args()

    clients = [start(args, number) for number in range(1, args.count + 1)]
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "moved":
            all_status = [handle.status() for _, handle in clients]
            moved = (f"{s.total_payload_upload}:{s.total_payload_download}" for s in all_status)
            print("moved " + " ".join(moved), flush=True)
    # Without the destructors: they wait for trackers, and nobody is there to hear of it.
    os._exit(0)


if __name__ == "__main__":
    main()
