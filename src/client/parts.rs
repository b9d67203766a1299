//! Which parts of the network run, and why others don't: what follows from the settings alone.

use super::Options;
use crate::net::proxy::ProxyKind;

/// A part that may be off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// The distributed hash table.
    Dht,
    /// Peers of the local network.
    Lsd,
    /// Connections over uTP.
    Utp,
    /// Ports that the router maps for us.
    PortMapping,
    /// Peers that connect to us.
    Listening,
    /// Trackers over UDP.
    UdpTrackers,
}

impl Part {
    const ALL: [Self; 6] =
        [Self::Dht, Self::Lsd, Self::Utp, Self::PortMapping, Self::Listening, Self::UdpTrackers];

    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dht => "DHT",
            Self::Lsd => "local network",
            Self::Utp => "uTP",
            Self::PortMapping => "port mapping",
            Self::Listening => "incoming connections",
            Self::UdpTrackers => "UDP trackers",
        }
    }
}

/// What is off, each with why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts(Vec<(Part, &'static str)>);

impl Parts {
    /// Those of a client's options.
    pub fn of(options: &Options) -> Self {
        let loopback = options.listen_addr.is_some_and(|addr| addr.is_loopback());
        let kind = options.proxy.as_ref().map(|proxy| proxy.kind);
        let why = |part| match part {
            Part::Dht if !options.use_dht => Some("--no-dht"),
            Part::Lsd if !options.use_lsd => Some("--no-lsd"),
            Part::Utp if !options.use_utp => Some("--no-utp"),
            Part::PortMapping if !options.use_port_mapping => Some("--no-port-mapping"),
            Part::UdpTrackers if !options.use_trackers => Some("--no-trackers"),
            Part::UdpTrackers => (kind == Some(ProxyKind::Http)).then_some("--proxy over HTTP"),
            // What it doesn't carry mustn't go past it.
            _ if kind.is_some() => Some("--proxy"),
            // On loopback nobody else is, and what the user wants to be heard there alone stays there.
            Part::Lsd | Part::PortMapping => loopback.then_some("--listen at a loopback address"),
            Part::Dht | Part::Utp | Part::Listening => None,
        };
        Self(Part::ALL.into_iter().filter_map(|part| Some((part, why(part)?))).collect())
    }

    /// Whether a part runs.
    pub fn runs(&self, part: Part) -> bool {
        !self.0.iter().any(|(off, _)| *off == part)
    }

    /// Those that don't, and the switch that says so.
    pub fn off(&self) -> &[(Part, &'static str)] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::super::for_tests;
    use super::*;
    use crate::net::proxy::Proxy;

    #[test]
    fn each_switch_has_its_part_and_a_proxy_has_most() {
        let all = Options {
            listen_addr: None,
            use_trackers: true,
            use_dht: true,
            use_lsd: true,
            use_utp: true,
            use_port_mapping: true,
            ..for_tests::options()
        };
        let here = "--listen at a loopback address";
        let loopback = Some([127, 0, 0, 1].into());
        let behind =
            [Part::Dht, Part::Lsd, Part::Utp, Part::PortMapping, Part::Listening].map(|p| (p, "--proxy"));
        for (options, off) in [
            (all.clone(), vec![]),
            (Options { use_dht: false, ..all.clone() }, vec![(Part::Dht, "--no-dht")]),
            (Options { use_utp: false, ..all.clone() }, vec![(Part::Utp, "--no-utp")]),
            (
                Options { listen_addr: loopback, ..all.clone() },
                vec![(Part::Lsd, here), (Part::PortMapping, here)],
            ),
            (
                Options { listen_addr: loopback, use_lsd: false, use_port_mapping: false, ..all.clone() },
                vec![(Part::Lsd, "--no-lsd"), (Part::PortMapping, "--no-port-mapping")],
            ),
            (Options { listen_addr: Some([10, 0, 0, 1].into()), ..all.clone() }, vec![]),
            (Options { proxy: Proxy::parse("socks5://a:1").ok(), ..all.clone() }, behind.to_vec()),
            (
                Options { proxy: Proxy::parse("http://a:1").ok(), listen_addr: loopback, ..all },
                [&behind[..], &[(Part::UdpTrackers, "--proxy over HTTP")]].concat(),
            ),
        ] {
            let parts = Parts::of(&options);
            assert_eq!(parts.off(), off);
            assert!(Part::ALL.iter().all(|part| parts.runs(*part) != off.iter().any(|(no, _)| no == part)));
        }
    }
}
