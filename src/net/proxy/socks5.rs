//! SOCKS5 (RFC 1928, 1929) from the client's side: messages to bytes and back. Pure; hostile input welcome.
//!
//! Flow: [`Client`] goes through greeting, password and request. It says how many bytes it needs of the proxy's next answer,
//! and never asks for one that follows it: those are the peer's. [`wrap`] and [`unwrap`] are the packets of an association.
//!
//! Not here: sockets; GSSAPI, which nobody has; fragments, which nobody sends, and which are dropped (RFC 1928 allows it).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Auth, Target};

const VERSION: u8 = 5;
const NO_AUTH: u8 = 0;
const PASSWORD: u8 = 2;
const NOTHING_SUITS: u8 = 0xff;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;
/// The longest head of a packet: two bytes, the fragment, the longest name, the port.
pub const MAX_HEAD: usize = 3 + 2 + 255 + 2;

/// What the proxy is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Connect to the target.
    Connect,
    /// Carry packets, for as long as the connection stands.
    Associate,
}

/// What went wrong between the proxy and us.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Socks5Error {
    /// It isn't SOCKS5.
    #[error("the answer isn't SOCKS5")]
    Malformed,
    /// It wants something that we haven't got.
    #[error("the proxy wants a user's name and password")]
    WantsPassword,
    /// It doesn't like what we have.
    #[error("the proxy refuses the user's name and password")]
    WrongPassword,
    /// A name is longer than the protocol has room for.
    #[error("a name is longer than 255 bytes")]
    TooLong,
    /// It refuses.
    #[error("{0}")]
    Refused(Refusal),
}

/// Why the proxy doesn't do what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// 1
    #[error("the proxy failed")]
    General,
    /// 2
    #[error("the proxy's rules forbid it")]
    Rules,
    /// 3
    #[error("the proxy can't reach the network")]
    Network,
    /// 4
    #[error("the proxy can't reach the host")]
    Host,
    /// 5
    #[error("the host refused the connection")]
    Connection,
    /// 6
    #[error("the host didn't answer the proxy")]
    TimedOut,
    /// 7
    #[error("the proxy can't do that")]
    Command,
    /// 8
    #[error("the proxy can't reach addresses of that kind")]
    Address,
    /// Any other.
    #[error("the proxy refused with code {0}")]
    Other(u8),
}

impl Refusal {
    fn of(code: u8) -> Self {
        match code {
            1 => Self::General,
            2 => Self::Rules,
            3 => Self::Network,
            4 => Self::Host,
            5 => Self::Connection,
            6 => Self::TimedOut,
            7 => Self::Command,
            8 => Self::Address,
            other => Self::Other(other),
        }
    }

    /// Whether it is about the target; otherwise it is about the proxy itself.
    pub fn is_of_target(self) -> bool {
        matches!(self, Self::Network | Self::Host | Self::Connection | Self::TimedOut | Self::Address)
    }
}

/// How it goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Something may be to be sent; then this many bytes more are needed, of what comes next.
    More(usize),
    /// Done: the address that the proxy has for it.
    Done(Target),
}

/// The conversation, up to the answer to the request.
pub struct Client {
    stage: Stage,
    auth: Option<Auth>,
    /// Ready to be sent when the proxy lets us in.
    request: Vec<u8>,
    input: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Greeting,
    Password,
    Request,
    Over,
}

impl Client {
    /// Begins; `out` gets the greeting, and two bytes are needed then.
    ///
    /// # Errors
    /// [`Socks5Error::TooLong`], of the target's name or of the user's.
    pub fn new(
        command: Command,
        target: &Target,
        auth: Option<&Auth>,
        out: &mut Vec<u8>,
    ) -> Result<(Self, Progress), Socks5Error> {
        let mut request = vec![VERSION, if command == Command::Connect { 1 } else { 3 }, 0];
        put_target(target, &mut request)?;
        if auth.is_some_and(|auth| auth.user.len() > 255 || auth.password.len() > 255) {
            return Err(Socks5Error::TooLong);
        }
        match auth {
            // Without a password, too: some proxies know us by our address.
            Some(_) => out.extend_from_slice(&[VERSION, 2, NO_AUTH, PASSWORD]),
            None => out.extend_from_slice(&[VERSION, 1, NO_AUTH]),
        }
        let client = Self { stage: Stage::Greeting, auth: auth.cloned(), request, input: Vec::new() };
        Ok((client, Progress::More(2)))
    }

    /// Takes what came: at most what was needed.
    ///
    /// # Errors
    /// See [`Socks5Error`]. It is over then.
    pub fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<Progress, Socks5Error> {
        self.input.extend_from_slice(bytes);
        let step = self.step(out);
        if !matches!(step, Ok(Progress::More(_))) {
            self.stage = Stage::Over;
        }
        step
    }

    fn step(&mut self, out: &mut Vec<u8>) -> Result<Progress, Socks5Error> {
        match self.stage {
            Stage::Greeting | Stage::Password => {
                let &[version, said] = self.input.as_slice() else {
                    return more(2, self.input.len());
                };
                self.input.clear();
                if self.stage == Stage::Password {
                    // The version is that of this part, 1; some say 5.
                    if said != 0 {
                        return Err(Socks5Error::WrongPassword);
                    }
                } else {
                    if version != VERSION {
                        return Err(Socks5Error::Malformed);
                    }
                    match (said, &self.auth) {
                        (NO_AUTH, _) => {}
                        (PASSWORD, Some(auth)) => {
                            out.push(1);
                            for part in [&auth.user, &auth.password] {
                                out.push(part.len() as u8);
                                out.extend_from_slice(part.as_bytes());
                            }
                            self.stage = Stage::Password;
                            return Ok(Progress::More(2));
                        }
                        (PASSWORD | NOTHING_SUITS, None) => return Err(Socks5Error::WantsPassword),
                        (NOTHING_SUITS, Some(_)) => return Err(Socks5Error::WrongPassword),
                        _ => return Err(Socks5Error::Malformed),
                    }
                }
                out.append(&mut self.request);
                self.stage = Stage::Request;
                Ok(Progress::More(4))
            }
            Stage::Request => {
                let here = self.input.len();
                let &[version, code, _, kind, ref rest @ ..] = self.input.as_slice() else {
                    return more(4, here);
                };
                if version != VERSION {
                    return Err(Socks5Error::Malformed);
                }
                // A refusal may end here: some leave out what follows.
                if code != 0 {
                    return Err(Socks5Error::Refused(Refusal::of(code)));
                }
                let whole = match (kind, rest) {
                    (IPV4, _) => 4 + 4 + 2,
                    (IPV6, _) => 4 + 16 + 2,
                    (NAME, [length, ..]) => 4 + 1 + usize::from(*length) + 2,
                    (NAME, []) => 5,
                    _ => return Err(Socks5Error::Malformed),
                };
                if here < whole {
                    return more(whole, here);
                }
                let (bound, _) = take_target(kind, rest).ok_or(Socks5Error::Malformed)?;
                Ok(Progress::Done(bound))
            }
            Stage::Over => Err(Socks5Error::Malformed),
        }
    }
}

fn more(whole: usize, here: usize) -> Result<Progress, Socks5Error> {
    match whole.checked_sub(here) {
        Some(missing) if missing > 0 => Ok(Progress::More(missing)),
        // More than was needed was fed.
        _ => Err(Socks5Error::Malformed),
    }
}

fn put_target(target: &Target, out: &mut Vec<u8>) -> Result<(), Socks5Error> {
    let port = match target {
        Target::Addr(addr) => {
            match addr.ip().to_canonical() {
                IpAddr::V4(ip) => {
                    out.push(IPV4);
                    out.extend_from_slice(&ip.octets());
                }
                IpAddr::V6(ip) => {
                    out.push(IPV6);
                    out.extend_from_slice(&ip.octets());
                }
            }
            addr.port()
        }
        Target::Name(name, port) => {
            out.push(NAME);
            out.push(u8::try_from(name.len()).map_err(|_| Socks5Error::TooLong)?);
            out.extend_from_slice(name.as_bytes());
            *port
        }
    };
    out.extend_from_slice(&port.to_be_bytes());
    Ok(())
}

/// A target of a kind, and what follows it. Names that aren't UTF-8 are replaced in part.
fn take_target(kind: u8, bytes: &[u8]) -> Option<(Target, &[u8])> {
    fn port(bytes: &[u8]) -> Option<(u16, &[u8])> {
        let (port, rest) = bytes.split_first_chunk::<2>()?;
        Some((u16::from_be_bytes(*port), rest))
    }
    match kind {
        IPV4 => {
            let (ip, rest) = bytes.split_first_chunk::<4>()?;
            let (port, rest) = port(rest)?;
            Some((Target::Addr(SocketAddr::new(Ipv4Addr::from(*ip).into(), port)), rest))
        }
        IPV6 => {
            let (ip, rest) = bytes.split_first_chunk::<16>()?;
            let (port, rest) = port(rest)?;
            // Some show senders of IPv4 so.
            let ip = IpAddr::from(Ipv6Addr::from(*ip)).to_canonical();
            Some((Target::Addr(SocketAddr::new(ip, port)), rest))
        }
        NAME => {
            let (length, rest) = bytes.split_first()?;
            let (name, rest) = rest.split_at_checked(usize::from(*length))?;
            let (port, rest) = port(rest)?;
            let name = String::from_utf8_lossy(name);
            // Some send addresses as text.
            let target = match name.parse::<IpAddr>() {
                Ok(ip) => Target::Addr(SocketAddr::new(ip.to_canonical(), port)),
                Err(_) => Target::Name(name.into_owned(), port),
            };
            Some((target, rest))
        }
        _ => None,
    }
}

/// A packet to a target, as an association's relay wants it.
///
/// # Errors
/// [`Socks5Error::TooLong`], of the target's name.
pub fn wrap(target: &Target, payload: &[u8]) -> Result<Vec<u8>, Socks5Error> {
    let mut out = Vec::with_capacity(payload.len() + 32);
    out.extend_from_slice(&[0, 0, 0]);
    put_target(target, &mut out)?;
    out.extend_from_slice(payload);
    Ok(out)
}

/// A packet of an association's relay: from whom, and what. `None` for what is none, and for fragments.
pub fn unwrap(packet: &[u8]) -> Option<(Target, &[u8])> {
    let &[_, _, fragment, kind, ref rest @ ..] = packet else { return None };
    if fragment != 0 {
        return None;
    }
    take_target(kind, rest)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn addr(text: &str) -> Target {
        Target::Addr(text.parse().unwrap())
    }

    fn name(name: &str, port: u16) -> Target {
        Target::Name(name.to_owned(), port)
    }

    fn auth() -> Auth {
        Auth { user: "me".into(), password: "secret".into() }
    }

    /// Talks to a proxy that answers these bytes, `cut` at a time; what we said, and what came of it.
    fn talk(
        command: Command,
        target: &Target,
        auth: Option<&Auth>,
        answers: &[u8],
        cut: usize,
    ) -> (Vec<u8>, Result<Target, Option<Socks5Error>>, usize) {
        let mut out = Vec::new();
        let mut at = 0;
        let (mut client, mut progress) = match Client::new(command, target, auth, &mut out) {
            Ok(begun) => begun,
            Err(error) => return (out, Err(Some(error)), 0),
        };
        loop {
            let needed = match progress {
                Progress::Done(bound) => return (out, Ok(bound), at),
                Progress::More(needed) => needed,
            };
            assert!(needed > 0);
            let some = &answers[at..(at + needed.min(cut)).min(answers.len())];
            if some.is_empty() {
                return (out, Err(None), at);
            }
            at += some.len();
            match client.feed(some, &mut out) {
                Ok(next) => progress = next,
                Err(error) => return (out, Err(Some(error)), at),
            }
        }
    }

    #[test]
    fn what_is_said_is_as_the_rfc_has_it() {
        let answers = [5, 0, 5, 0, 0, 1, 10, 0, 0, 1, 0x1a, 0xe1];
        let connect = [5, 1, 0, 5, 1, 0, 1, 1, 2, 3, 4, 0, 80];
        let (out, bound, _) = talk(Command::Connect, &addr("1.2.3.4:80"), None, &answers, 99);
        assert_eq!((out, bound), (connect.to_vec(), Ok(addr("10.0.0.1:6881"))));
        let mapped = talk(Command::Connect, &addr("[::ffff:1.2.3.4]:80"), None, &answers, 99);
        assert_eq!(mapped.0, connect);

        let (out, ..) = talk(Command::Connect, &name("a.example", 443), None, &answers, 1);
        assert_eq!(out, [&[5, 1, 0, 5, 1, 0, 3, 9][..], b"a.example", &[1, 0xbb]].concat());
        let (out, ..) = talk(Command::Connect, &addr("[2001:db8::1]:1"), None, &answers, 1);
        assert_eq!(out[3..8], [5, 1, 0, 4, 0x20]);
        assert_eq!(out.len(), 3 + 4 + 16 + 2);

        // After the password the command is still the one that was wanted.
        let answers = [5, 2, 1, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 9];
        let (out, bound, _) = talk(Command::Associate, &addr("0.0.0.0:0"), Some(&auth()), &answers, 1);
        let expected =
            [&[5, 2, 0, 2, 1, 2][..], b"me", &[6], b"secret", &[5, 3, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
        assert_eq!((out, bound), (expected, Ok(addr("0.0.0.0:9"))));
        // A proxy that wants none gets none.
        let answers = [5, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 9];
        let (out, ..) = talk(Command::Connect, &addr("1.2.3.4:80"), Some(&auth()), &answers, 3);
        assert!(!out.windows(6).any(|part| part == b"secret"));
    }

    #[test]
    fn whatever_comes_behind_the_answer_is_left_to_the_peer() {
        for (answer, bound) in [
            (&[5, 0, 0, 1, 1, 2, 3, 4, 0, 9][..], addr("1.2.3.4:9")),
            (&[5, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 9], addr("[::1]:9")),
            (&[5, 0, 0, 3, 2, b'a', b'b', 0, 9], name("ab", 9)),
            (&[5, 0, 0, 3, 0, 0, 9], name("", 9)),
            (&[5, 0, 0, 3, 7, b'1', b'.', b'2', b'.', b'3', b'.', b'4', 0, 9], addr("1.2.3.4:9")),
        ] {
            let answers = [&[5, 0], answer, b"\x13BitTorrent protocol"].concat();
            for cut in 1..40 {
                let (_, done, taken) = talk(Command::Connect, &name("x", 1), None, &answers, cut);
                assert_eq!((done, taken), (Ok(bound.clone()), 2 + answer.len()), "{answer:?} {cut}");
            }
        }
    }

    #[test]
    fn each_failure_has_its_name() {
        let refused = |refusal| Some(Socks5Error::Refused(refusal));
        for (answers, with, why) in [
            (&[5, 0xff][..], false, Some(Socks5Error::WantsPassword)),
            (&[5, 2], false, Some(Socks5Error::WantsPassword)),
            (&[5, 0xff], true, Some(Socks5Error::WrongPassword)),
            (&[5, 2, 1, 1], true, Some(Socks5Error::WrongPassword)),
            (&[5, 2, 5, 0, 5, 3, 0, 1], true, refused(Refusal::Network)),
            (&[5, 1], true, Some(Socks5Error::Malformed)),
            (&[4, 0], false, Some(Socks5Error::Malformed)),
            (b"HTTP/1.1 400", false, Some(Socks5Error::Malformed)),
            (&[5, 0, 5, 1, 0, 1], false, refused(Refusal::General)),
            (&[5, 0, 5, 2, 0, 1], false, refused(Refusal::Rules)),
            (&[5, 0, 5, 4, 0, 1], false, refused(Refusal::Host)),
            (&[5, 0, 5, 5, 0, 1], false, refused(Refusal::Connection)),
            (&[5, 0, 5, 6, 0, 1], false, refused(Refusal::TimedOut)),
            (&[5, 0, 5, 7, 0, 1], false, refused(Refusal::Command)),
            (&[5, 0, 5, 8, 0, 1], false, refused(Refusal::Address)),
            (&[5, 0, 5, 99, 0, 1], false, refused(Refusal::Other(99))),
            (&[5, 0, 5, 0, 0, 2], false, Some(Socks5Error::Malformed)),
            (&[5, 0, 4, 0, 0, 1], false, Some(Socks5Error::Malformed)),
            // The connection ends too early.
            (&[], false, None),
            (&[5, 0, 5, 0, 0, 1, 1], false, None),
        ] {
            for cut in [1, 99] {
                let auth = with.then(auth);
                let (_, done, _) = talk(Command::Connect, &name("x", 1), auth.as_ref(), answers, cut);
                assert_eq!(done, Err(why.clone()), "{answers:?}");
            }
        }
        let long = name(&"a".repeat(256), 1);
        assert_eq!(talk(Command::Connect, &long, None, &[], 1).1, Err(Some(Socks5Error::TooLong)));
        let long = Auth { user: "a".repeat(256), password: String::new() };
        assert_eq!(
            talk(Command::Connect, &name("x", 1), Some(&long), &[], 1).1,
            Err(Some(Socks5Error::TooLong))
        );
        assert!(Refusal::Host.is_of_target() && !Refusal::Rules.is_of_target());
    }

    #[test]
    fn packets_are_wrapped_and_unwrapped() {
        for target in [addr("1.2.3.4:80"), addr("[2001:db8::1]:80"), name("tracker.example", 6969)] {
            let packet = wrap(&target, b"payload").unwrap();
            assert!(packet.len() <= MAX_HEAD + 7);
            assert_eq!(unwrap(&packet), Some((target, &b"payload"[..])));
            for cut in 0..packet.len() - 7 {
                assert_eq!(unwrap(&packet[..cut]), None);
            }
            let mut fragment = packet;
            fragment[2] = 1;
            assert_eq!(unwrap(&fragment), None);
        }
        assert_eq!(wrap(&name(&"a".repeat(255), 1), b"").unwrap().len(), MAX_HEAD);
        assert_eq!(wrap(&name(&"a".repeat(256), 1), b""), Err(Socks5Error::TooLong));
        assert_eq!(unwrap(&[0, 0, 0, 2, 0, 0, 0, 0]), None);
    }

    proptest! {
        #[test]
        fn no_answer_is_too_strange(answers in proptest::collection::vec(any::<u8>(), 0..300), polite: bool, with: bool, cut in 1..50usize) {
            let mut answers = answers;
            if polite {
                answers.splice(0..0, [5, 0, 5, 0, 0]);
            }
            let auth = with.then(auth);
            let (out, _, taken) = talk(Command::Connect, &name("x", 1), auth.as_ref(), &answers, cut);
            prop_assert!(out.len() < 64 && taken <= 2 + 2 + MAX_HEAD + 2);
        }

        #[test]
        fn no_packet_is_too_strange(packet in proptest::collection::vec(any::<u8>(), 0..300), polite: bool) {
            let mut packet = packet;
            if polite {
                packet.splice(0..0, [0, 0, 0]);
            }
            if let Some((target, payload)) = unwrap(&packet) {
                prop_assert!(packet.ends_with(payload));
                if let Ok(again) = wrap(&target, payload) {
                    prop_assert_eq!(unwrap(&again), Some((target, payload)));
                }
            }
        }
    }
}
