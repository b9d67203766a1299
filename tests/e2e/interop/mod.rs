//! Other people's clients: each seeds to a mount and fetches from one, over each kind of connection, and found in each way.
//! What was seen makes the table in `docs/INTEROP.md`.
//!
//! **Parts.** `field`: a network of its own for each way, the mount on it, and the proof: what `status --json` says of
//! the very peer that bytes were moved with. `clients`: how each is told what to do. `table`: the cells, what is recorded, and the
//! document.
//!
//! **Flow.** The client has everything and a mount fetches from it; then it ends, and the client, with nothing, fetches from
//! a mount that has everything. Both keep to a small rate, so that they can be looked at meanwhile. The ways of a client go on
//! beside each other: what takes long is the clients' clocks.
//!
//! `scripts/interop` runs all of it and writes the document.

mod clients;
mod field;
mod table;

use crate::needs;

/// Whose client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    Libtorrent,
    Transmission,
    Aria2,
}

/// What it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Seeds,
    Fetches,
}

/// How it is connected, or found where nothing else is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Tcp4,
    Tcp6,
    Rc4,
    Utp4,
    Utp6,
    Dht4,
    Dht6,
    Pex,
    Lsd,
}

impl Client {
    const ALL: [Self; 3] = [Self::Libtorrent, Self::Transmission, Self::Aria2];

    fn name(self) -> &'static str {
        match self {
            Self::Libtorrent => "libtorrent",
            Self::Transmission => "transmission",
            Self::Aria2 => "aria2",
        }
    }
}

impl Role {
    const BOTH: [Self; 2] = [Self::Seeds, Self::Fetches];
}

impl Way {
    const CONNECTED: [Self; 5] = [Self::Tcp4, Self::Tcp6, Self::Rc4, Self::Utp4, Self::Utp6];
    const FOUND: [Self; 4] = [Self::Dht4, Self::Dht6, Self::Pex, Self::Lsd];

    fn all() -> impl Iterator<Item = Self> {
        Self::CONNECTED.into_iter().chain(Self::FOUND)
    }

    fn is_utp(self) -> bool {
        matches!(self, Self::Utp4 | Self::Utp6)
    }

    fn is_dht(self) -> bool {
        matches!(self, Self::Dht4 | Self::Dht6)
    }

    fn is_ipv6(self) -> bool {
        matches!(self, Self::Tcp6 | Self::Utp6 | Self::Dht6)
    }
}

/// Shows these ways of a client beside each other, as far as it has them.
fn show(client: Client, ways: &[Way]) {
    std::thread::scope(|scope| {
        for way in ways.iter().copied().filter(|way| table::lacks(client, *way).is_none()) {
            let shown = std::thread::Builder::new().name(format!("{} {way:?}", client.name()));
            shown.spawn_scoped(scope, move || field::show(client, way)).expect("a thread");
        }
    });
}

#[test]
fn libtorrent_is_connected() {
    needs!(Fuse, Libtorrent, Netns);
    show(Client::Libtorrent, &Way::CONNECTED);
}

#[test]
fn libtorrent_is_found() {
    needs!(Fuse, Libtorrent, Netns);
    show(Client::Libtorrent, &Way::FOUND);
}

#[test]
fn transmission_is_connected() {
    needs!(Fuse, Libtorrent, Netns, Transmission);
    show(Client::Transmission, &Way::CONNECTED);
}

#[test]
fn transmission_is_found() {
    needs!(Fuse, Libtorrent, Netns, Transmission, TransmissionRemote);
    show(Client::Transmission, &Way::FOUND);
}

#[test]
fn aria2_is_connected() {
    needs!(Fuse, Libtorrent, Netns, Aria2);
    show(Client::Aria2, &Way::CONNECTED);
}

#[test]
fn aria2_is_found() {
    needs!(Fuse, Libtorrent, Netns, Aria2);
    show(Client::Aria2, &Way::FOUND);
}
