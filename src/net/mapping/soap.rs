//! What is said to a UPnP router once it is found: its description, the actions of its connection, and their answers. Pure;
//! hostile input welcome.
//!
//! Not here: finding it ([`super::ssdp`]), and what to say when ([`super::igd`]).

use std::net::{IpAddr, Ipv4Addr};

use super::Protocol;
use super::http::{Place, Response, post};
use super::xml::{Leaf, escape, leaves};

/// Connections of one router that are looked at: one with several lines has two or three.
const MAX_SERVICES: usize = 8;
/// The longest words of a router that are shown.
const MAX_WORDS: usize = 120;
/// What our mappings are called in the router's list.
pub const DESCRIPTION: &str = "torrentfs";

/// A connection of a router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Where its actions are asked for.
    pub control: Place,
    /// Its kind and version.
    pub urn: String,
    /// Whether it finds a free port by itself (version 2).
    pub finds_port: bool,
}

/// The connections that a description names. Those that another host is to serve are left out.
pub fn services(description: &str, at: &Place) -> Vec<Service> {
    let mut found = Vec::new();
    let mut base = at.clone();
    let (mut urn, mut control) = (None, None);
    for leaf in leaves(description, "service") {
        match leaf {
            Leaf::Begin => (urn, control) = (None, None),
            Leaf::Text("URLBase", text) => base = at.join(&text).unwrap_or(base),
            Leaf::Text("serviceType", text) => urn = version(&text).map(|version| (text, version)),
            Leaf::Text("controlURL", text) => control = Some(text),
            Leaf::Text(..) => {}
            Leaf::End => {
                let (Some((urn, version)), Some(control)) = (urn.take(), control.take()) else { continue };
                if let Some(control) = base.join(&control)
                    && found.len() < MAX_SERVICES
                {
                    found.push(Service { control, finds_port: version > 1 && urn.contains("WANIP"), urn });
                }
            }
        }
    }
    found
}

/// The version of a connection, by its kind. `None` for other services, and for what couldn't stand in a header.
fn version(urn: &str) -> Option<u32> {
    let rest = urn.strip_prefix("urn:schemas-upnp-org:service:")?;
    let (kind, version) = rest.split_once(':')?;
    let is_connection = ["WANIPConnection", "WANPPPConnection"].contains(&kind);
    (is_connection && version.len() <= 2).then(|| version.parse().ok()).flatten()
}

/// Something that a connection does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Is it connected?
    Status,
    /// Its address in the internet.
    Address,
    /// Map a port.
    Add {
        /// Of what.
        protocol: Protocol,
        /// The port outside.
        external: u16,
        /// Where it leads.
        client: Ipv4Addr,
        /// To which port.
        internal: u16,
        /// In seconds; 0 for ever.
        lease: u32,
        /// The router may take another port outside, if this one is taken.
        any: bool,
    },
    /// Who has a port?
    Look {
        /// Of what.
        protocol: Protocol,
        /// The port outside.
        external: u16,
    },
    /// Take a mapping away.
    Delete {
        /// Of what.
        protocol: Protocol,
        /// The port outside.
        external: u16,
    },
}

impl Action {
    fn name(&self) -> &'static str {
        match self {
            Self::Status => "GetStatusInfo",
            Self::Address => "GetExternalIPAddress",
            Self::Add { any: false, .. } => "AddPortMapping",
            Self::Add { any: true, .. } => "AddAnyPortMapping",
            Self::Look { .. } => "GetSpecificPortMappingEntry",
            Self::Delete { .. } => "DeletePortMapping",
        }
    }

    /// The request for it.
    pub fn request(&self, service: &Service) -> Vec<u8> {
        let (name, urn) = (self.name(), escape(&service.urn));
        let which = |protocol: Protocol, external: u16| {
            format!(
                "<NewRemoteHost></NewRemoteHost><NewExternalPort>{external}</NewExternalPort>\
                 <NewProtocol>{}</NewProtocol>",
                protocol.name()
            )
        };
        let arguments = match *self {
            Self::Status | Self::Address => String::new(),
            Self::Look { protocol, external } | Self::Delete { protocol, external } => {
                which(protocol, external)
            }
            Self::Add { protocol, external, client, internal, lease, .. } => format!(
                "{}<NewInternalPort>{internal}</NewInternalPort><NewInternalClient>{client}</NewInternalClient>\
                 <NewEnabled>1</NewEnabled><NewPortMappingDescription>{DESCRIPTION}</NewPortMappingDescription>\
                 <NewLeaseDuration>{lease}</NewLeaseDuration>",
                which(protocol, external)
            ),
        };
        let body = format!(
            "<?xml version=\"1.0\"?>\r\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body><u:{name} xmlns:u=\"{urn}\">\
             {arguments}</u:{name}></s:Body></s:Envelope>\r\n"
        );
        post(&service.control, &format!("{}#{name}", service.urn), &body)
    }
}

/// A router's no.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// In UPnP's terms.
    #[error("the router refused: {words} ({code})")]
    Upnp {
        /// Its number.
        code: u16,
        /// Its words, made printable.
        words: String,
    },
    /// In HTTP's.
    #[error("the router answered with status {0}")]
    Status(u16),
    /// It said something else.
    #[error("the router's answer isn't understood")]
    Malformed,
}

impl Fault {
    /// Its number, if it has one.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Upnp { code, .. } => Some(*code),
            Self::Status(_) | Self::Malformed => None,
        }
    }
}

/// The values of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Values(Vec<(String, String)>);

impl Values {
    /// Reads the answer to an action.
    ///
    /// # Errors
    /// See [`Fault`].
    pub fn read(response: &Response) -> Result<Self, Fault> {
        let text = response.text();
        let all = leaves(&text, "");
        let values = Self(
            all.into_iter()
                .filter_map(|leaf| match leaf {
                    Leaf::Text(name, value) => Some((name.to_owned(), value)),
                    Leaf::Begin | Leaf::End => None,
                })
                .collect(),
        );
        if let Some(code) = values.get("errorCode") {
            let code = code.parse().map_err(|_| Fault::Malformed)?;
            let words = values.get("errorDescription").unwrap_or_default();
            let words = words.chars().filter(|c| !c.is_control()).take(MAX_WORDS).collect();
            return Err(Fault::Upnp { code, words });
        }
        match response.status {
            200 if text.contains("Envelope") => Ok(values),
            200 => Err(Fault::Malformed),
            status => Err(Fault::Status(status)),
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// Of [`Action::Status`]: whether it is connected, if it says so.
    pub fn connected(&self) -> Option<bool> {
        self.get("NewConnectionStatus").map(|status| status.eq_ignore_ascii_case("connected"))
    }

    /// Of [`Action::Address`].
    pub fn address(&self) -> Option<IpAddr> {
        self.get("NewExternalIPAddress")?.parse().ok()
    }

    /// Of [`Action::Add`] with `any`: the port that it took.
    pub fn reserved(&self) -> Option<u16> {
        self.get("NewReservedPort")?.parse().ok().filter(|port| *port != 0)
    }

    /// Of [`Action::Look`]: where the port leads.
    pub fn client(&self) -> Option<(Ipv4Addr, u16)> {
        Some((self.get("NewInternalClient")?.parse().ok()?, self.get("NewInternalPort")?.parse().ok()?))
    }

    /// Of [`Action::Look`]: for how many seconds yet; 0 for ever.
    pub fn lease(&self) -> Option<u32> {
        self.get("NewLeaseDuration")?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const HEAD: &str = "<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body>";
    const URN: &str = "urn:schemas-upnp-org:service:";

    fn service(kind: &str, control: &str) -> String {
        format!("<service><serviceType>{URN}{kind}</serviceType><controlURL>{control}</controlURL></service>")
    }

    fn response(status: u16, body: &str) -> Response {
        Response { status, body: body.as_bytes().to_vec() }
    }

    #[test]
    fn connections_are_found_in_a_description() {
        let at = Place::parse("http://10.0.0.1:5000/r/d.xml").unwrap();
        let of = |text: &str| -> Vec<(String, bool)> {
            let all = services(text, &at).into_iter();
            all.map(|s| (format!("{}{}", s.control.at, s.control.path), s.finds_port)).collect()
        };
        let ip = service("WANIPConnection:1", "/c");
        let expected = vec![("10.0.0.1:5000/c".to_owned(), false)];
        for around in [
            format!("<root>{}{ip}</root>", service("Layer3Forwarding:1", "/l")),
            // In devices of devices, and beside ones that another host serves, that name nothing, or can't be named.
            format!(
                "<root><device><deviceList><device><serviceList>{ip}</serviceList></device></deviceList></device>"
            ),
            format!("{}{ip}", service("WANIPConnection:1", "http://8.8.8.8/c")),
            format!("<service><serviceType>{URN}WANIPConnection:1</serviceType></service>{ip}"),
            format!("{}{ip}", service("WANIPConnection:1\r\nX: y", "/c")),
            format!("{}{ip}", service("WANIPConnection:x", "/c")),
            // A base elsewhere doesn't count.
            format!("<URLBase>http://8.8.8.8/</URLBase>{ip}"),
            format!("<URLBase>http://10.0.0.1:5000</URLBase>{ip}"),
        ] {
            assert_eq!(of(&around), expected, "{around}");
        }
        assert_eq!(
            of(&format!("<URLBase>http://10.0.0.1:7/b/</URLBase>{}", service("WANPPPConnection:1", "c"))),
            [("10.0.0.1:7/b/c".to_owned(), false)]
        );
        assert_eq!(of(&service("WANIPConnection:2", "c")), [("10.0.0.1:5000/r/c".to_owned(), true)]);
        assert_eq!(of(&ip.repeat(100)).len(), MAX_SERVICES);
        assert_eq!(of(""), []);
    }

    #[test]
    fn actions_name_what_they_are_about() {
        let at = Place::parse("http://10.0.0.1:5000/").unwrap();
        let service = services(&service("WANIPConnection:1", "/c"), &at).remove(0);
        let client = Ipv4Addr::new(10, 0, 0, 9);
        let protocol = Protocol::Udp;
        for (action, name, holds) in [
            (Action::Status, "GetStatusInfo", &[][..]),
            (Action::Address, "GetExternalIPAddress", &[]),
            (
                Action::Add { protocol, external: 7, client, internal: 8, lease: 9, any: false },
                "AddPortMapping",
                &[
                    "<NewRemoteHost></NewRemoteHost>",
                    "<NewExternalPort>7</",
                    "<NewProtocol>UDP</",
                    "<NewInternalPort>8</",
                    "<NewInternalClient>10.0.0.9</",
                    "<NewLeaseDuration>9</",
                    "<NewEnabled>1</",
                ],
            ),
            (
                Action::Add { protocol, external: 7, client, internal: 8, lease: 0, any: true },
                "AddAnyPortMapping",
                &["<NewLeaseDuration>0</"],
            ),
            (
                Action::Look { protocol, external: 7 },
                "GetSpecificPortMappingEntry",
                &["<NewExternalPort>7</"],
            ),
            (Action::Delete { protocol, external: 7 }, "DeletePortMapping", &["<NewProtocol>UDP</"]),
        ] {
            let text = String::from_utf8(action.request(&service)).unwrap();
            assert!(text.starts_with("POST /c HTTP/1.1\r\n"), "{text}");
            assert!(
                text.contains(&format!("\r\nSOAPAction: \"{URN}WANIPConnection:1#{name}\"\r\n")),
                "{text}"
            );
            assert!(text.contains(&format!("<u:{name} xmlns:u=\"{URN}WANIPConnection:1\">")), "{text}");
            for part in holds {
                assert!(text.contains(part), "{part}: {text}");
            }
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())));
        }
    }

    #[test]
    fn answers_have_values_or_a_fault() {
        let of = |status, body: &str| {
            Values::read(&response(status, &format!("{HEAD}{body}</s:Body></s:Envelope>")))
        };
        let entry = "<u:R><NewInternalPort>6881</NewInternalPort><NewInternalClient>10.0.0.9</NewInternalClient>\
                     <NewLeaseDuration>0</NewLeaseDuration><NewExternalIPAddress>1.2.3.4</NewExternalIPAddress>\
                     <NewReservedPort>7</NewReservedPort><NewConnectionStatus>Connected</NewConnectionStatus></u:R>";
        let values = of(200, entry).unwrap();
        assert_eq!(values.client(), Some((Ipv4Addr::new(10, 0, 0, 9), 6881)));
        assert_eq!((values.lease(), values.reserved()), (Some(0), Some(7)));
        assert_eq!((values.address(), values.connected()), (Some([1, 2, 3, 4].into()), Some(true)));
        let values = of(
            200,
            "<NewConnectionStatus>Disconnected</NewConnectionStatus><NewReservedPort>0</NewReservedPort>",
        );
        let values = values.unwrap();
        assert_eq!((values.connected(), values.reserved(), values.address()), (Some(false), None, None));
        assert_eq!((values.client(), values.lease()), (None, None));

        let fault = "<s:Fault><detail><UPnPError><errorCode>718</errorCode><errorDescription>Con\u{7}flict\
                     </errorDescription></UPnPError></detail></s:Fault>";
        let conflict = Fault::Upnp { code: 718, words: "Conflict".into() };
        assert_eq!(of(500, fault), Err(conflict.clone()));
        // Some say it with 200.
        assert_eq!(of(200, fault), Err(conflict.clone()));
        assert_eq!(conflict.to_string(), "the router refused: Conflict (718)");
        assert_eq!(conflict.code(), Some(718));
        assert_eq!(of(500, ""), Err(Fault::Status(500)));
        assert_eq!(of(500, "<errorCode>-1</errorCode>"), Err(Fault::Malformed));
        assert_eq!(Values::read(&response(200, "<html>Log in</html>")), Err(Fault::Malformed));
        let long =
            format!("<errorCode>1</errorCode><errorDescription>{}</errorDescription>", "a".repeat(500));
        assert!(matches!(of(500, &long), Err(Fault::Upnp { words, .. }) if words.len() == MAX_WORDS));
    }

    proptest! {
        #[test]
        fn no_document_is_too_strange(text in "(</?(service|serviceType|controlURL|URLBase|errorCode|Envelope)>|[ -~]{0,12}|urn:schemas-upnp-org:service:WANIPConnection:1){0,30}") {
            let at = Place::parse("http://10.0.0.1:5000/").unwrap();
            for service in services(&text, &at) {
                prop_assert_eq!(service.control.at.ip(), at.at.ip());
                let request = String::from_utf8(Action::Status.request(&service)).unwrap();
                // Nothing of theirs makes a further header.
                prop_assert_eq!(request.split_once("\r\n\r\n").unwrap().0.lines().count(), 7);
            }
            let _ = Values::read(&response(200, &text));
        }
    }
}
