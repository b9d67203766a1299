//! Entries to the network: names that are looked up when the node asks for them.

use std::net::SocketAddr;

use futures_util::future::join_all;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::run::Command;
use crate::net::hosts::{self, Reach};
use crate::sync::timeouts::RESOLVE;

/// The well-known ones.
pub const WELL_KNOWN: [&str; 4] = [
    "dht.libtorrent.org:25401",
    "dht.transmissionbt.com:6881",
    "router.bittorrent.com:6881",
    "router.utorrent.com:6881",
];
/// Addresses that are taken of all the names of one request.
const ADDRS_MAX: usize = 64;

/// Nodes of one torrent that are looked up; real ones name a handful.
const NODES_MAX: usize = 32;

/// What is to be looked up.
#[derive(Debug)]
pub enum Wanted {
    /// The way in.
    Entries,
    /// Nodes that a torrent names, by host and port, and how far they may be.
    Nodes(Vec<(String, u16)>, Reach),
}

/// Looks names up, one request after the other, until nobody asks any more. Why it failed goes to the node, too.
pub async fn look_up(
    entries: Option<Vec<String>>,
    mut wanted: mpsc::Receiver<Wanted>,
    node: mpsc::Sender<Command>,
) {
    while let Some(wanted) = wanted.recv().await {
        let command = match wanted {
            Wanted::Entries => {
                let found = match &entries {
                    Some(names) => resolve(names).await,
                    None => resolve(&WELL_KNOWN).await,
                };
                Command::Enter(found)
            }
            Wanted::Nodes(nodes, reach) => {
                let look_up =
                    nodes.iter().take(NODES_MAX).map(|(host, port)| hosts::lookup(host, *port, reach));
                let mut addrs: Vec<_> = join_all(look_up).await.into_iter().flatten().flatten().collect();
                addrs.truncate(ADDRS_MAX);
                Command::Hint(addrs)
            }
        };
        if node.send(command).await.is_err() {
            return;
        }
    }
}

/// The addresses of `HOST:PORT` names, all looked up at once. Some that fail do no harm.
///
/// # Errors
/// In words for the user, when there are names and none has an address.
pub async fn resolve(names: &[impl AsRef<str>]) -> Result<Vec<SocketAddr>, String> {
    let look_up = |name: &str| {
        let name = name.to_owned();
        async move {
            match timeout(RESOLVE, tokio::net::lookup_host(&name)).await {
                Ok(Ok(addrs)) => Ok(addrs.collect::<Vec<_>>()),
                Ok(Err(error)) => Err(format!("{name}: {error}")),
                Err(_) => Err(format!("{name}: no answer from the resolver")),
            }
        }
    };
    let mut addrs = Vec::new();
    let mut why = None;
    for looked_up in join_all(names.iter().map(|name| look_up(name.as_ref()))).await {
        match looked_up {
            Ok(found) => addrs.extend(found),
            Err(error) => why = why.or(Some(error)),
        }
    }
    addrs.truncate(ADDRS_MAX);
    if addrs.is_empty() && !names.is_empty() {
        let why = why.unwrap_or_else(|| "they have no address".into());
        return Err(format!("no bootstrap node can be resolved ({why})"));
    }
    Ok(addrs)
}
