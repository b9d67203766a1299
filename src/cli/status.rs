//! `torrentfs status`: running mounts as a table, or as JSON. Text out, nothing is asked here.
//!
//! [`lines`] makes the table, as wide as it may be: what matters least goes first when room is short, and names give
//! way in their middle. Names come from strangers and are made harmless. [`json`] is for programs, and documented in
//! `docs/CONTROL.md`.

use std::time::Duration;

use serde_json::json;

use super::progress::{bar, span};
use super::terminal::{bytes, clean, cut, fit, text_width};
use crate::control::status::{Dht, Network, Off, Status, Torrent, Webseed};

/// A name in fewer columns says nothing.
const NAME_LEAST: usize = 12;
/// What a bar is wide, in columns, if there is room.
const BAR: usize = 22;
/// Waiting reads told of one torrent at most: more are counted.
const WAITING: usize = 3;
/// Trackers that fail told of one torrent at most.
const TRACKERS: usize = 3;
/// Webseeds told of one torrent at most, those with something wrong first: more are counted.
const WEBSEEDS: usize = 5;

/// How the table is to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// How wide it may be, in columns; `None` for as wide as it is.
    pub width: Option<usize>,
    /// Whether there are bars.
    pub bars: bool,
}

/// Mounts for people, line by line.
pub fn lines(mounts: &[Status], look: Look) -> Vec<String> {
    let mut out = Vec::new();
    for mount in mounts {
        if !out.is_empty() {
            out.push(String::new());
        }
        out.extend(head(mount));
        out.extend(table(&mount.torrents, look));
    }
    if mounts.is_empty() {
        out.push("Nothing of yours is mounted by torrentfs.".to_owned());
    }
    if let Some(width) = look.width {
        for line in &mut out {
            if text_width(line) > width {
                *line = cut(line, width).into_owned();
            }
        }
    }
    out
}

/// What is said of a mount as a whole.
fn head(mount: &Status) -> Vec<String> {
    let cache = &mount.cache;
    let bound = cache.bound.map_or(String::new(), |bound| format!(" of {}", bytes(bound)));
    let free = cache.free.map_or("unknown".to_owned(), bytes);
    let mut out = vec![
        format!(
            "{}  torrentfs {}, process {}, for {}, port {}",
            clean(&mount.mountpoint),
            clean(&mount.version),
            mount.pid,
            span(Duration::from_secs(mount.uptime)),
            mount.port
        ),
        format!("  kept: {}{bound}; free: {free}; in {}", bytes(cache.kept), clean(&cache.dir)),
        format!(
            "  received: {} at {}; sent: {} at {}",
            bytes(mount.downloaded),
            rate(mount.rate_down),
            bytes(mount.uploaded),
            rate(mount.rate_up)
        ),
        format!("  peers: {}; DHT: {}", reached(&mount.torrents), dht(mount.network.dht.as_ref())),
    ];
    out.extend(network(&mount.network));
    out
}

/// How the network is, as far as it isn't as usual.
fn network(network: &Network) -> impl Iterator<Item = String> {
    let mapped = network.mapped.first().map(|first| {
        let ports: Vec<_> =
            network.mapped.iter().map(|m| format!("{} {}", clean(&m.protocol), m.external)).collect();
        let at = first.address.as_deref().map_or(String::new(), |address| format!(" at {}", clean(address)));
        format!("  mapped: {} by {}{at}", ports.join(", "), clean(&first.by))
    });
    let trouble = network.unmapped.as_deref().map(|why| {
        let what = if network.mapped.is_empty() { "not mapped" } else { "mapped in vain" };
        format!("  {what}: {}", clean(why))
    });
    let mut off: Vec<(&str, Vec<&str>)> = Vec::new();
    for Off { part, why } in &network.off {
        match off.iter_mut().find(|(known, _)| known == why) {
            Some((_, parts)) => parts.push(part),
            None => off.push((why, vec![part])),
        }
    }
    let off: Vec<_> = off.iter().map(|(why, parts)| format!("{} ({})", parts.join(", "), why)).collect();
    let off = (!off.is_empty()).then(|| format!("  off: {}", clean(&off.join("; "))));
    let proxy = network.proxy.as_deref().map(|proxy| match network.proxy_trouble.as_deref() {
        Some(why) => format!("  proxy: {}: {}", clean(proxy), clean(why)),
        None => format!("  proxy: {}", clean(proxy)),
    });
    [mapped, trouble, proxy, off].into_iter().flatten()
}

/// How many peers are connected, and how.
fn reached(torrents: &[Torrent]) -> String {
    let sum = |of: fn(&Torrent) -> u64| torrents.iter().map(of).fold(0, u64::saturating_add);
    let (all, utp, encrypted) = (sum(|t| t.peers), sum(|t| t.utp), sum(|t| t.encrypted));
    match all {
        0 => "none".to_owned(),
        _ => format!("{all} ({} TCP, {utp} uTP, {encrypted} encrypted)", all.saturating_sub(utp)),
    }
}

fn dht(node: Option<&Dht>) -> String {
    let Some(node) = node else { return "none".to_owned() };
    let mut text = match node.state.as_str() {
        "running" => format!("{} nodes (IPv4), {} (IPv6)", node.nodes, node.nodes6),
        other => clean(other).into_owned(),
    };
    if node.read_only {
        text += ", only asks";
    }
    if let Some(reason) = &node.reason {
        text += &format!(": {}", clean(reason));
    }
    text
}

/// A column beside the names.
struct Column {
    head: &'static str,
    /// Figures stand to the right.
    is_figure: bool,
    cells: Vec<String>,
}

impl Column {
    fn width(&self) -> usize {
        self.cells.iter().map(|cell| text_width(cell)).chain([self.head.len()]).max().unwrap_or(0)
    }
}

fn table(torrents: &[Torrent], look: Look) -> Vec<String> {
    if torrents.is_empty() {
        return vec!["  no torrents".to_owned()];
    }
    let column = |head, is_figure, cell: fn(&Torrent) -> String| Column {
        head,
        is_figure,
        cells: torrents.iter().map(cell).collect(),
    };
    // The number tells which goes first when there is no room.
    let mut columns = vec![
        (5, column("HERE", true, percent)),
        (2, column("SIZE", true, |t| if t.size == 0 { "-".into() } else { bytes(t.size) })),
        (4, column("STATE", false, |t| clean(&t.state).into_owned())),
        (3, column("DOWN", true, |t| rate(t.rate_down))),
        (1, column("UP", true, |t| rate(t.rate_up))),
        (2, column("PEERS", true, peers)),
    ];
    if look.bars {
        columns.insert(0, (0, column("", false, |t| bar(part(t), BAR))));
    }
    let longest = torrents.iter().map(|t| text_width(&clean(&t.name))).max().unwrap_or(0).max("NAME".len());
    let name_width = loop {
        let others: usize = columns.iter().map(|(_, column)| column.width() + 2).sum();
        let Some(width) = look.width else { break longest };
        let left = width.saturating_sub(others);
        if left >= longest.min(NAME_LEAST) {
            break longest.min(left);
        }
        let Some(least) = columns.iter().map(|(keep, _)| *keep).min() else { break width };
        columns.retain(|(keep, _)| *keep != least);
    };
    let row = |name: &str, cell: &dyn Fn(&Column) -> &str| {
        let mut line = fit(name, name_width);
        for (_, column) in &columns {
            let (cell, width) = (cell(column), column.width());
            let pad = " ".repeat(width.saturating_sub(text_width(cell)));
            let (before, after) = if column.is_figure { (pad.as_str(), "") } else { ("", pad.as_str()) };
            line.push_str(&format!("  {before}{cell}{after}"));
        }
        line.truncate(line.trim_end().len());
        line
    };
    let mut out = vec![row("NAME", &|column| column.head)];
    for (at, torrent) in torrents.iter().enumerate() {
        out.push(row(&torrent.name, &|column| column.cells.get(at).map_or("", String::as_str)));
        out.extend(notes(torrent));
    }
    out
}

/// What is to be said of a torrent beside its figures.
fn notes(torrent: &Torrent) -> Vec<String> {
    let mut out = Vec::new();
    if let Some(metadata) = &torrent.metadata
        && torrent.size == 0
    {
        out.push(format!("    metadata: {} of {}", bytes(metadata.here), bytes(metadata.size)));
    }
    for read in torrent.waiting.iter().take(WAITING) {
        out.push(format!("    waits: {} @ {} for {} s", clean(&read.file), bytes(read.offset), read.seconds));
    }
    let told = torrent.waiting.len().min(WAITING) as u64;
    if torrent.waiting_count > told {
        out.push(format!("    waits: {} more", torrent.waiting_count - told));
    }
    // That many of a long list are dead is no news.
    let failing = torrent.trackers.iter().filter_map(|tracker| Some((tracker, tracker.reason.as_ref()?)));
    for (tracker, reason) in failing.take(TRACKERS) {
        out.push(format!(
            "    tracker: {}, {}: {}",
            clean(&tracker.url),
            clean(&tracker.state),
            clean(reason)
        ));
    }
    let mut webseeds: Vec<&Webseed> = torrent.webseeds.iter().collect();
    webseeds.sort_by_key(|seed| seed.reason.is_none());
    for seed in webseeds.iter().take(WEBSEEDS) {
        out.push(format!("    webseed: {}", webseed(seed)));
    }
    if webseeds.len() > WEBSEEDS {
        out.push(format!("    webseeds: {} more", webseeds.len() - WEBSEEDS));
    }
    if let Some(seeded) = &torrent.seeded {
        out.push(format!("    seeding has ended: {}", clean(seeded)));
    }
    if let Some(error) = &torrent.error {
        out.push(format!("    error: {}", clean(error)));
    }
    out
}

/// A webseed, what it does and why.
fn webseed(seed: &Webseed) -> String {
    let mut text = format!("{}, {}", clean(&seed.url), clean(&seed.state));
    if let Some(seconds) = seed.seconds {
        text += &format!(" {seconds} s");
    }
    text += &format!(", {}", bytes(seed.downloaded));
    match seed.refused_files {
        0 => {}
        1 => text += ", without one file",
        files => text += &format!(", without {files} files"),
    }
    if let Some(reason) = &seed.reason {
        text += &format!(": {}", clean(reason));
    }
    text
}

/// How much of it is here, in percent, rounded down; `None` while its size isn't known.
fn part(torrent: &Torrent) -> Option<u64> {
    match (torrent.here, torrent.size) {
        (_, 0) if torrent.state == "complete" => Some(100),
        (_, 0) => None,
        (here, size) => Some((u128::from(here.min(size)) * 100 / u128::from(size)) as u64),
    }
}

fn percent(torrent: &Torrent) -> String {
    part(torrent).map_or("-".to_owned(), |part| format!("{part}%"))
}

fn peers(torrent: &Torrent) -> String {
    match torrent.connecting {
        0 => torrent.peers.to_string(),
        dialled => format!("{} (+{dialled})", torrent.peers),
    }
}

fn rate(n: u64) -> String {
    format!("{}/s", bytes(n))
}

/// A mount that was named, or all of them, as one JSON object on a line.
pub fn json(mounts: &[Status], named: bool) -> String {
    let object = match mounts {
        [mount] if named => json!(mount),
        _ => json!({ "mounts": mounts }),
    };
    format!("{object}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::status::{Cache, Mapped, Metadata, Tracker, Waiting};

    fn sample() -> Status {
        let film = Torrent {
            name: "film.mkv".into(),
            state: "downloading".into(),
            here: 45 << 20,
            size: 100 << 20,
            rate_down: 12_897_485,
            peers: 12,
            utp: 2,
            encrypted: 7,
            connecting: 3,
            waiting: (0..5)
                .map(|n| Waiting { file: "film.mkv".into(), offset: n << 20, seconds: 9 - n })
                .collect(),
            waiting_count: 7,
            ..Torrent::default()
        };
        let other = Torrent {
            name: "Ein sehr langer Name, der nirgends ganz hineinpasst.resolving".into(),
            state: "resolving".into(),
            metadata: Some(Metadata { here: 16 << 10, size: 64 << 10 }),
            ..Torrent::default()
        };
        let broken = Torrent {
            name: "映画\u{1b}[2J".into(),
            state: "error".into(),
            size: 1 << 30,
            error: Some("the disk is full".into()),
            trackers: (0..5)
                .map(|n| Tracker {
                    url: format!("udp://{n}.example:1"),
                    state: if n == 0 { "working" } else { "failed" }.into(),
                    reason: (n > 0).then(|| "no answer\u{1b}".into()),
                })
                .collect(),
            webseeds: (0..7)
                .map(|n| Webseed {
                    url: format!("http://{n}.example/\u{1b}x"),
                    state: if n == 6 { "waiting" } else { "idle" }.into(),
                    seconds: (n == 6).then_some(12),
                    reason: (n == 6).then(|| "the server answered 503".into()),
                    refused_files: n / 3,
                    requests: n,
                    downloaded: n << 20,
                })
                .collect(),
            ..Torrent::default()
        };
        Status {
            version: "0.1.0".into(),
            pid: 123,
            mountpoint: "/mnt/t".into(),
            uptime: 3725,
            port: 6881,
            cache: Cache { dir: "/c".into(), kept: 2 << 30, bound: Some(20 << 30), free: Some(35 << 30) },
            rate_down: 12_897_485,
            downloaded: 3 << 30,
            network: Network {
                dht: Some(Dht { state: "running".into(), nodes: 120, nodes6: 7, ..Dht::default() }),
                lsd: true,
                ..Network::default()
            },
            torrents: vec![film, other, broken],
            ..Status::default()
        }
    }

    fn shown(mounts: &[Status], width: Option<usize>, bars: bool) -> String {
        lines(mounts, Look { width, bars }).join("\n")
    }

    #[test]
    fn a_table_for_people() {
        let text = shown(&[sample()], Some(80), false);
        let want = "\
/mnt/t  torrentfs 0.1.0, process 123, for 1 h 2 min, port 6881
  kept: 2.0 GiB of 20.0 GiB; free: 35.0 GiB; in /c
  received: 3.0 GiB at 12.3 MiB/s; sent: 0 B at 0 B/s
  peers: 12 (10 TCP, 2 uTP, 7 encrypted); DHT: 120 nodes (IPv4), 7 (IPv6)
NAME                      HERE     SIZE  STATE              DOWN     UP    PEERS
film.mkv                   45%  100 MiB  downloading  12.3 MiB/s  0 B/s  12 (+3)
    waits: film.mkv @ 0 B for 9 s
    waits: film.mkv @ 1.0 MiB for 8 s
    waits: film.mkv @ 2.0 MiB for 7 s
    waits: 4 more
Ein sehr la…passt.resolving  -        -  resolving         0 B/s  0 B/s        0
    metadata: 16.0 KiB of 64.0 KiB
映画\u{fffd}[2J";
        assert!(text.starts_with(want.split("NAME").next().unwrap_or_default()), "{text}");
        for part in [
            "NAME ",
            " 45%  100 MiB  downloading  12.3 MiB/s  0 B/s  12 (+3)\n    waits: film.mkv @ 0 B for 9 s\n",
            "    waits: film.mkv @ 2.0 MiB for 7 s\n    waits: 4 more\nEin sehr",
            ".resolving",
            "\n    metadata: 16.0 KiB of 64.0 KiB\n映画\u{fffd}[2J",
            "\n    error: the disk is full",
        ] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
        // Not on a terminal: whole names.
        let text = shown(&[sample()], None, false);
        let webseeds = "
    tracker: udp://1.example:1, failed: no answer\u{fffd}
    tracker: udp://2.example:1, failed: no answer\u{fffd}
    tracker: udp://3.example:1, failed: no answer\u{fffd}
    webseed: http://6.example/\u{fffd}x, waiting 12 s, 6.0 MiB, without 2 files: the server answered 503
    webseed: http://0.example/\u{fffd}x, idle, 0 B
";
        assert!(text.contains(webseeds), "{text}");
        let more =
            "http://3.example/\u{fffd}x, idle, 3.0 MiB, without one file\n    webseeds: 2 more\n    error: ";
        assert!(text.contains(more), "{text}");
        assert!(text.contains("Ein sehr langer Name, der nirgends ganz hineinpasst.resolving  "), "{text}");
        assert_eq!(shown(&[], None, false), "Nothing of yours is mounted by torrentfs.");
        let off = |part: &str, why: &str| Off { part: part.into(), why: why.into() };
        let of = |protocol: &str| Mapped {
            protocol: protocol.into(),
            by: "UPnP".into(),
            internal: 6881,
            external: 6882,
            address: Some("203.0.113.5".into()),
        };
        let network = Network {
            port_outside: 6882,
            mapped: vec![of("TCP"), of("UDP")],
            unmapped: None,
            proxy: Some("socks5://h:1".into()),
            proxy_trouble: Some("no answer".into()),
            off: vec![off("DHT", "--a"), off("uTP", "--b"), off("LSD", "--a")],
            ..sample().network
        };
        let in_vain = Network { unmapped: Some("a private one".into()), ..network.clone() };
        let not = Network { mapped: Vec::new(), off: Vec::new(), proxy: None, ..in_vain.clone() };
        for (network, said) in [
            (
                network,
                "\n  mapped: TCP 6882, UDP 6882 by UPnP at 203.0.113.5\n  proxy: socks5://h:1: no answer\n  off: DHT, LSD (--a); uTP (--b)\nNAME",
            ),
            (
                in_vain,
                " at 203.0.113.5\n  mapped in vain: a private one\n  proxy: socks5://h:1: no answer\n  off: ",
            ),
            (not, "\n  not mapped: a private one\nNAME"),
        ] {
            let text = shown(&[Status { network, ..sample() }], None, false);
            assert!(text.contains(said), "{text}");
        }
        let empty = Status { torrents: Vec::new(), ..sample() };
        assert!(shown(&[sample(), empty], None, false).contains("\n\n/mnt/t  "));
    }

    #[test]
    fn how_the_node_in_the_dht_is_doing() {
        let node = |state: &str, read_only, reason: Option<&str>| Dht {
            state: state.into(),
            nodes: 3,
            nodes6: 0,
            read_only,
            reason: reason.map(str::to_owned),
        };
        for (node, words) in [
            (None, "none"),
            (Some(node("starting", false, None)), "starting"),
            (Some(node("running", true, None)), "3 nodes (IPv4), 0 (IPv6), only asks"),
            (Some(node("failed", false, Some("no port\u{1b}"))), "failed: no port\u{fffd}"),
        ] {
            assert_eq!(dht(node.as_ref()), words);
        }
        assert_eq!(reached(&[]), "none");
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let mut mount = sample();
        for n in 0..20 {
            mount.torrents.push(Torrent {
                name: "👩‍👩‍👧 長い名前 ".repeat(n),
                state: "idle".into(),
                ..Torrent::default()
            });
        }
        for bars in [false, true] {
            for width in 0..150 {
                for line in lines(std::slice::from_ref(&mount), Look { width: Some(width), bars }) {
                    assert!(text_width(&line) <= width, "{line:?} is wider than {width}");
                    assert!(!line.contains(char::is_control), "{line:?}");
                }
            }
        }
        let narrow = shown(&[sample()], Some(24), false);
        assert!(narrow.contains("45%") && !narrow.contains("PEERS"), "{narrow}");
    }

    #[test]
    fn bars_where_there_is_room() {
        let wide = shown(&[sample()], Some(120), true);
        assert!(wide.contains("  [#########-----------]   45%"), "{wide}");
        let narrow = shown(&[sample()], Some(60), true);
        assert!(!narrow.contains("[#"), "{narrow}");
    }

    #[test]
    fn one_object_for_programs() {
        let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap_or_default();
        let one = json(&[sample()], true);
        assert_eq!(one.lines().count(), 1);
        assert_eq!(read(&one)["torrents"][0]["waiting"][1]["offset"], 1 << 20);
        assert_eq!(read(&one)["cache"]["bound"], 20u64 << 30);
        assert_eq!(read(&json(&[sample()], false))["mounts"][0]["pid"], 123);
        assert_eq!(read(&json(&[], false))["mounts"], serde_json::json!([]));
    }
}
