//! A router of the tests' own: PCP, NAT-PMP and UPnP over one table, as most real ones have it, with the faults of the
//! others to choose from. Pure; the sockets around it are in `tests.rs`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::http::Response;
use super::natpmp::{self, Reply as NatPmpReply};
use super::pcp::{self, Map, Nonce, Reply as PcpReply};
use super::xml::{Leaf, leaves};
use super::{Method, Protocol};

/// What a router does.
#[derive(Debug, Clone)]
pub struct Router {
    /// It speaks PCP.
    pub pcp: bool,
    /// It speaks NAT-PMP. One that does, and doesn't speak PCP, says so.
    pub natpmp: bool,
    /// It says nothing to what it doesn't speak.
    pub mute: bool,
    /// It refuses to map anything, in all languages.
    pub stubborn: bool,
    /// It speaks UPnP, of this version; 0 for not at all.
    pub upnp: u32,
    /// Only mappings without end, in UPnP.
    pub permanent_only: bool,
    /// Says that arguments are wrong unless a mapping is asked for so long.
    pub only_life: Option<u32>,
    /// Refuses a port again to whom it has it already.
    pub strict: bool,
    /// Can't tell who has a port, nor whether it is connected.
    pub dull: bool,
    /// Its second line is the one that is connected.
    pub two_lines: bool,
    /// The longest life that it gives.
    pub life: u32,
    /// Its address outside.
    pub address: IpAddr,
    /// Where UPnP answers.
    pub http: SocketAddr,
    /// Since when it counts.
    pub booted: Instant,
    /// What it has mapped.
    pub table: Table,
    /// What it was asked, by name.
    pub asked: Vec<String>,
}

/// The mappings, by protocol and port outside.
pub type Table = BTreeMap<(Protocol, u16), Entry>;

/// A mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Whose.
    pub client: IpAddr,
    /// Its port.
    pub internal: u16,
    /// Until when; `None` for ever.
    pub until: Option<Instant>,
    nonce: Nonce,
}

impl Entry {
    /// For ever, somebody's.
    pub fn of(client: &str, internal: u16) -> Self {
        let client = client.parse().unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        Self { client, internal, until: None, nonce: Nonce::default() }
    }
}

impl Router {
    /// Speaks one language well.
    pub fn of(method: Method, now: Instant) -> Self {
        Self {
            pcp: method == Method::Pcp,
            natpmp: method == Method::NatPmp,
            mute: method == Method::Upnp,
            stubborn: false,
            upnp: u32::from(method == Method::Upnp),
            permanent_only: false,
            only_life: None,
            strict: false,
            dull: false,
            two_lines: false,
            life: 7200,
            address: Ipv4Addr::new(9, 9, 9, 9).into(),
            http: SocketAddr::from(([192, 168, 1, 1], 5000)),
            booted: now - Duration::from_secs(100_000),
            table: Table::new(),
            asked: Vec::new(),
        }
    }

    /// Forgets all.
    pub fn restart(&mut self, now: Instant) {
        self.table.clear();
        self.booted = now;
    }

    fn epoch(&self, now: Instant) -> u32 {
        now.saturating_duration_since(self.booted).as_secs() as u32
    }

    fn expire(&mut self, now: Instant) {
        self.table.retain(|_, entry| entry.until.is_none_or(|until| now < until));
    }

    /// A mapping in a language in which the router chooses the port.
    fn map(&mut self, key: (Protocol, u16), entry: Entry) -> u16 {
        let (protocol, wish) = key;
        let ours = |(_, other): &(&(Protocol, u16), &Entry)| {
            (other.client, other.internal) == (entry.client, entry.internal)
        };
        let known =
            self.table.iter().filter(|((p, _), _)| *p == protocol).find(ours).map(|((_, port), _)| *port);
        let mut port = known.unwrap_or(if wish == 0 { entry.internal } else { wish });
        while self.table.get(&(protocol, port)).is_some_and(|other| other.client != entry.client) {
            port = port.wrapping_add(1).max(1024);
        }
        self.table.insert((protocol, port), entry);
        port
    }

    fn unmap(&mut self, protocol: Protocol, client: IpAddr, internal: u16, nonce: Nonce) {
        self.table.retain(|(p, _), entry| {
            *p != protocol || entry.client != client || entry.internal != internal || entry.nonce != nonce
        });
    }

    /// What it answers at its port for orders.
    pub fn control(&mut self, from: IpAddr, packet: &[u8], now: Instant) -> Option<Vec<u8>> {
        self.expire(now);
        match *packet.first()? {
            pcp::VERSION if self.pcp => self.pcp(from, packet, now),
            natpmp::VERSION if self.natpmp => self.natpmp(from, packet, now),
            _ if self.mute || !self.natpmp => None,
            _ => Some(NatPmpReply::Refused(natpmp::Refusal::Version).encode()),
        }
    }

    fn natpmp(&mut self, from: IpAddr, packet: &[u8], now: Instant) -> Option<Vec<u8>> {
        let epoch = self.epoch(now);
        let operation = packet.get(1)?;
        self.asked.push(format!("natpmp {operation}"));
        if self.stubborn {
            return Some(NatPmpReply::Refused(natpmp::Refusal::NotAuthorized).encode());
        }
        if *operation == 0 {
            let IpAddr::V4(address) = self.address else { return None };
            return Some(NatPmpReply::Address { epoch, address }.encode());
        }
        let &[a, b, c, d, e, f, g, h] = packet.get(4..12)?.first_chunk::<8>()?;
        let (internal, wish) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        let lifetime = u32::from_be_bytes([e, f, g, h]).min(self.life);
        let protocol = if *operation == 2 { Protocol::Tcp } else { Protocol::Udp };
        let external = if lifetime == 0 {
            self.unmap(protocol, from, internal, Nonce::default());
            0
        } else {
            let until = Some(now + Duration::from_secs(lifetime.into()));
            self.map((protocol, wish), Entry { client: from, internal, until, nonce: Nonce::default() })
        };
        Some(NatPmpReply::Map { epoch, protocol, internal, external, lifetime }.encode())
    }

    fn pcp(&mut self, from: IpAddr, packet: &[u8], now: Instant) -> Option<Vec<u8>> {
        let operation = packet.get(1)?;
        self.asked.push(format!("pcp {operation}"));
        let mut answer = packet.to_vec();
        answer[1] |= 128;
        let reply = PcpReply::decode(&answer);
        // A request has a reserved byte where an answer has its code, so it reads as a good one.
        let (lifetime, map) = reply.map(|reply| (reply.lifetime, reply.map))?;
        let epoch = self.epoch(now);
        let no = |refused| PcpReply { refused: Some(refused), lifetime: 600, epoch, map }.encode();
        let client = Request::client(packet)?;
        if client != from {
            return Some(no(pcp::Refusal::Address));
        }
        if self.stubborn {
            return Some(no(pcp::Refusal::NotAuthorized));
        }
        let Some(map) = map else {
            return Some(PcpReply { refused: None, lifetime: 0, epoch, map: None }.encode());
        };
        let others = |((protocol, _), entry): (&(Protocol, u16), &Entry)| {
            (*protocol, entry.client, entry.internal) == (map.protocol, from, map.internal)
                && entry.nonce != map.nonce
        };
        if self.table.iter().any(others) {
            return Some(no(pcp::Refusal::NotAuthorized));
        }
        let lifetime = lifetime.min(self.life);
        let external = if lifetime == 0 {
            self.unmap(map.protocol, from, map.internal, map.nonce);
            map.external
        } else if from.is_ipv6() {
            self.map((map.protocol, map.internal), entry(from, &map, lifetime, now))
        } else {
            self.map((map.protocol, map.external), entry(from, &map, lifetime, now))
        };
        let address = if from.is_ipv6() { from } else { self.address };
        let map = Some(Map { external, address, ..map });
        Some(PcpReply { refused: None, lifetime, epoch, map }.encode())
    }

    /// What it answers to a search.
    pub fn search(&self, packet: &[u8]) -> Option<Vec<u8>> {
        let text = String::from_utf8_lossy(packet);
        let target = text.lines().find_map(|line| line.strip_prefix("ST: "))?;
        (self.upnp > 0 && target.contains("InternetGatewayDevice")).then(|| {
            format!(
                "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nST: {target}\r\nLOCATION: http://{}/root.xml\r\n\r\n",
                self.http
            )
            .into_bytes()
        })
    }

    /// What it answers over HTTP to a whole request.
    pub fn http(&mut self, request: &str, now: Instant) -> Response {
        self.expire(now);
        let (head, body) = request.split_once("\r\n\r\n").unwrap_or_default();
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        if head.starts_with("GET") {
            self.asked.push(format!("GET {path}"));
            return self.description(&path);
        }
        let action = head.lines().find_map(|line| line.strip_prefix("SOAPAction: ")).unwrap_or_default();
        let action = action.trim_matches('"').rsplit('#').next().unwrap_or_default().to_owned();
        let connected = !self.two_lines || path == "/ctl/2";
        let all = leaves(body, "");
        let get = |wanted: &str| {
            all.iter().find_map(|leaf| match leaf {
                Leaf::Text(name, text) if *name == wanted => Some(text.clone()),
                _ => None,
            })
        };
        let number = |name: &str| get(name).and_then(|text| text.parse::<u32>().ok());
        self.asked.push(format!(
            "{action} {} {}",
            number("NewExternalPort").unwrap_or(0),
            number("NewLeaseDuration").unwrap_or(1)
        ));
        let protocol =
            if get("NewProtocol").as_deref() == Some("UDP") { Protocol::Udp } else { Protocol::Tcp };
        let key = (protocol, number("NewExternalPort").unwrap_or(0) as u16);
        match action.as_str() {
            "GetStatusInfo" if self.dull => fault(401),
            "GetStatusInfo" => {
                let status = if connected { "Connected" } else { "Disconnected" };
                answer(&action, &format!("<NewConnectionStatus>{status}</NewConnectionStatus>"))
            }
            _ if !connected => fault(501),
            "GetExternalIPAddress" => {
                answer(&action, &format!("<NewExternalIPAddress>{}</NewExternalIPAddress>", self.address))
            }
            _ if self.stubborn => fault(606),
            "GetSpecificPortMappingEntry" if self.dull => fault(401),
            "GetSpecificPortMappingEntry" => match self.table.get(&key) {
                Some(entry) => answer(
                    &action,
                    &format!(
                        "<NewInternalPort>{}</NewInternalPort><NewInternalClient>{}</NewInternalClient>\
                         <NewLeaseDuration>{}</NewLeaseDuration>",
                        entry.internal,
                        entry.client,
                        entry.until.map_or(0, |until| (until - now).as_secs())
                    ),
                ),
                None => fault(714),
            },
            "DeletePortMapping" => match self.table.remove(&key) {
                Some(_) => answer(&action, ""),
                None => fault(714),
            },
            "AddPortMapping" | "AddAnyPortMapping" => {
                let Some(client) = get("NewInternalClient").and_then(|text| text.parse().ok()) else {
                    return fault(402);
                };
                let internal = number("NewInternalPort").unwrap_or(0) as u16;
                let lease = number("NewLeaseDuration").unwrap_or(0);
                if self.permanent_only && lease > 0 {
                    return fault(725);
                }
                if self.only_life.is_some_and(|life| life != lease) {
                    return fault(402);
                }
                let lease = lease.min(self.life);
                let until = (lease > 0).then(|| now + Duration::from_secs(lease.into()));
                let entry = Entry { client, internal, until, nonce: Nonce::default() };
                if action == "AddAnyPortMapping" {
                    if self.upnp < 2 {
                        return fault(401);
                    }
                    let port = self.map(key, entry);
                    return answer(&action, &format!("<NewReservedPort>{port}</NewReservedPort>"));
                }
                match self.table.get(&key) {
                    Some(other) if self.strict || other.client != client => return fault(718),
                    _ => {}
                }
                self.table.insert(key, entry);
                answer(&action, "")
            }
            _ => fault(401),
        }
    }

    fn description(&self, path: &str) -> Response {
        if path != "/root.xml" {
            return Response { status: 404, body: Vec::new() };
        }
        let service = |control: &str| {
            format!(
                "<service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:{}</serviceType>\
                 <serviceId>urn:upnp-org:serviceId:WANIPConn1</serviceId><controlURL>{control}</controlURL>\
                 <eventSubURL>/evt</eventSubURL><SCPDURL>/scpd.xml</SCPDURL></service>",
                self.upnp
            )
        };
        let second = if self.two_lines { service("ctl/2") } else { String::new() };
        let body = format!(
            "<?xml version=\"1.0\"?><root xmlns=\"urn:schemas-upnp-org:device-1-0\"><device><friendlyName>Box &amp; Co\
             </friendlyName><deviceList><device><serviceList>{}{second}</serviceList></device></deviceList></device></root>",
            service("/ctl/1")
        );
        Response { status: 200, body: body.into_bytes() }
    }
}

/// A request of PCP, as a router reads it.
struct Request;

impl Request {
    fn client(packet: &[u8]) -> Option<IpAddr> {
        let octets: [u8; 16] = *packet.get(8..24)?.first_chunk()?;
        Some(IpAddr::from(octets).to_canonical())
    }
}

fn entry(client: IpAddr, map: &Map, lifetime: u32, now: Instant) -> Entry {
    let until = Some(now + Duration::from_secs(lifetime.into()));
    Entry { client, internal: map.internal, until, nonce: map.nonce }
}

fn envelope(body: &str) -> Vec<u8> {
    format!("<?xml version=\"1.0\"?><s:Envelope xmlns:s=\"x\"><s:Body>{body}</s:Body></s:Envelope>")
        .into_bytes()
}

fn answer(action: &str, values: &str) -> Response {
    let body = envelope(&format!("<u:{action}Response xmlns:u=\"urn:x\">{values}</u:{action}Response>"));
    Response { status: 200, body }
}

fn fault(code: u16) -> Response {
    let body = envelope(&format!(
        "<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail><UPnPError>\
         <errorCode>{code}</errorCode><errorDescription>No {code}</errorDescription></UPnPError></detail></s:Fault>"
    ));
    Response { status: 500, body }
}
