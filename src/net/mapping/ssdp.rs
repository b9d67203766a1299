//! Finding UPnP routers (SSDP): the search that goes to the network's group, and the answers. Pure; hostile input welcome.
//!
//! Not here: announcements that devices send of their own accord; we search when we want one.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use super::http::{Place, status_of};

/// The group that all UPnP devices are in.
pub const GROUP: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(239, 255, 255, 250), 1900));
/// The longest answer that is read.
pub const MAX_ANSWER: usize = 2048;
/// What a router is known by, the usual first. Some answer only to one of the later ones.
pub const TARGETS: [&str; 5] = [
    "urn:schemas-upnp-org:device:InternetGatewayDevice:1",
    "urn:schemas-upnp-org:device:InternetGatewayDevice:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
    "upnp:rootdevice",
];

/// The search for devices of a kind, to a group.
pub fn search(group: SocketAddr, target: &str) -> Vec<u8> {
    format!("M-SEARCH * HTTP/1.1\r\nHOST: {group}\r\nMAN: \"ssdp:discover\"\r\nMX: 2\r\nST: {target}\r\n\r\n")
        .into_bytes()
}

/// Where the description of the device is that answers. `None` for what is no answer, for other devices than routers, and
/// for one that names another host than that from which it came: nobody makes us call a third.
pub fn answer(packet: &[u8], from: SocketAddr) -> Option<Place> {
    if packet.len() > MAX_ANSWER {
        return None;
    }
    let text = String::from_utf8_lossy(packet);
    let mut lines = text.lines();
    if status_of(lines.next()?)? != 200 {
        return None;
    }
    let (mut location, mut is_router) = (None, false);
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let (name, value) = (name.trim(), value.trim());
        if name.eq_ignore_ascii_case("location") {
            location = location.or_else(|| Place::parse(value));
        } else if name.eq_ignore_ascii_case("st") {
            let kind = ["InternetGatewayDevice", "WANIPConnection", "WANPPPConnection", "rootdevice"];
            is_router = kind.iter().any(|kind| value.contains(kind));
        }
    }
    location.filter(|place| is_router && place.at.ip() == from.ip())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_search_is_as_upnp_has_it() {
        let text = String::from_utf8(search(GROUP, TARGETS[0])).unwrap();
        assert_eq!(
            text,
            "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 2\r\n\
             ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n"
        );
    }

    #[test]
    fn answers_are_told_from_what_is_none() {
        let from = "192.168.1.1:1900".parse().unwrap();
        let st = "ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1";
        for (text, found) in [
            (format!("HTTP/1.1 200 OK\r\n{st}\r\nLOCATION: http://192.168.1.1:5000/r.xml\r\n\r\n"), true),
            (format!("http/1.1 200 ok\nlocation:http://192.168.1.1:5000/r.xml\n{st}\n"), true),
            (format!("HTTP/1.1 200 OK\r\n{st}\r\nLOCATION: http://192.168.1.2:5000/r.xml\r\n\r\n"), false),
            (format!("HTTP/1.1 200 OK\r\n{st}\r\nLOCATION: http://127.0.0.1:5000/r.xml\r\n\r\n"), false),
            (format!("HTTP/1.1 200 OK\r\n{st}\r\nLOCATION: http://router/r.xml\r\n\r\n"), false),
            (format!("HTTP/1.1 404 No\r\n{st}\r\nLOCATION: http://192.168.1.1:5000/r.xml\r\n\r\n"), false),
            (format!("NOTIFY * HTTP/1.1\r\n{st}\r\nLOCATION: http://192.168.1.1:5000/r.xml\r\n\r\n"), false),
            (
                "HTTP/1.1 200 OK\r\nST: urn:x:MediaRenderer:1\r\nLOCATION: http://192.168.1.1/\r\n".into(),
                false,
            ),
            ("HTTP/1.1 200 OK\r\nLOCATION: http://192.168.1.1/\r\n".into(), false),
            (format!("HTTP/1.1 200 OK\r\n{st}\r\n"), false),
            (String::new(), false),
        ] {
            let place = answer(text.as_bytes(), from);
            assert_eq!(
                place,
                found.then(|| Place::parse("http://192.168.1.1:5000/r.xml").unwrap()),
                "{text}"
            );
        }
        let mut long =
            format!("HTTP/1.1 200 OK\r\n{st}\r\nLOCATION: http://192.168.1.1:5000/r.xml\r\n").into_bytes();
        long.resize(MAX_ANSWER + 1, b' ');
        assert_eq!(answer(&long, from), None);
    }

    proptest! {
        #[test]
        fn nobody_makes_us_call_another(text in "HTTP/1\\.1 200 OK\r\nST:rootdevice\r\nLOCATION:[a-z0-9:/.\\[\\]@]{0,40}\r\n") {
            let from: SocketAddr = "192.168.1.1:1900".parse().unwrap();
            if let Some(place) = answer(text.as_bytes(), from) {
                prop_assert_eq!(place.at.ip(), from.ip());
            }
        }

        #[test]
        fn no_packet_is_too_strange(packet in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = answer(&packet, GROUP);
        }
    }
}
