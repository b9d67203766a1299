//! The handshake of who is dialled.

use bytes::BytesMut;

use super::dh::{KEY, Keys, SECRET};
use super::{
    CHECK, Ciphers, Line, MseError, OFFER, Pads, Policy, Progress, digest, mask, pad_len, skip_to, take,
    take_slice,
};

/// See the module's text. Fed with what comes, from the first byte on, until it is over.
pub struct Responder {
    policy: Policy,
    secret: [u8; SECRET],
    pads: Pads,
    state: State,
}

enum State {
    /// The other's key is to come.
    Key,
    /// Padding, up to the mark.
    Mark {
        shared: Box<[u8; KEY]>,
        mark: [u8; 20],
    },
    /// The torrent's masked name.
    Torrent {
        shared: Box<[u8; KEY]>,
    },
    /// The check, the offer, and how long the padding behind it is.
    Offer(Known),
    /// That padding, and how much is said at once.
    Pad {
        known: Known,
        chosen: u32,
        len: usize,
    },
    /// What is said at once.
    Initial {
        known: Known,
        chosen: u32,
        len: usize,
    },
    Over,
}

/// What is known with the torrent.
struct Known {
    skey: [u8; 20],
    ciphers: Ciphers,
}

impl Responder {
    /// Begins. Nothing is computed before a key has come. `secret` is random, and for one connection only.
    pub fn new(policy: Policy, secret: [u8; SECRET], pads: Pads) -> Self {
        Self { policy, secret, pads, state: State::Key }
    }

    /// Takes what has come off `input`, as far as it can be understood, and appends to `out` what is to be sent. `skey_of`
    /// gives the torrent whose [`super::obscured`] name this is, if it is here.
    ///
    /// # Errors
    /// See [`MseError`]. It is over then.
    pub fn feed(
        &mut self,
        input: &mut BytesMut,
        out: &mut Vec<u8>,
        skey_of: &dyn Fn(&[u8; 20]) -> Option<[u8; 20]>,
    ) -> Result<Progress, MseError> {
        loop {
            match std::mem::replace(&mut self.state, State::Over) {
                State::Key => {
                    let Some(theirs) = take::<KEY>(input) else { return self.wait(State::Key) };
                    let keys = Keys::new(self.secret);
                    let shared = Box::new(keys.share(&theirs).ok_or(MseError::BadKey)?);
                    // Now, and not after their padding: only what follows from our key can end that.
                    out.extend(keys.public());
                    out.extend(&self.pads.front);
                    let mark = digest(&[b"req1", &shared[..]]);
                    self.state = State::Mark { shared, mark };
                }
                State::Mark { shared, mark } => {
                    if !skip_to(&mark, input)? {
                        return self.wait(State::Mark { shared, mark });
                    }
                    self.state = State::Torrent { shared };
                }
                State::Torrent { shared } => {
                    let Some(masked) = take::<20>(input) else { return self.wait(State::Torrent { shared }) };
                    let skey = skey_of(&mask(&shared, masked)).ok_or(MseError::UnknownTorrent)?;
                    let ciphers = Ciphers::new(&shared, &skey).turned();
                    self.state = State::Offer(Known { skey, ciphers });
                }
                State::Offer(mut known) => {
                    let Some(mut frame) = take::<OFFER>(input) else { return self.wait(State::Offer(known)) };
                    known.ciphers.read.apply(&mut frame);
                    let [check @ .., a, b, c, d, high, low] = frame;
                    if check != CHECK {
                        return Err(MseError::Unreadable);
                    }
                    let chosen = self.policy.choose(u32::from_be_bytes([a, b, c, d]))?;
                    self.state = State::Pad { known, chosen, len: pad_len([high, low])? };
                }
                State::Pad { mut known, chosen, len } => {
                    let Some(mut frame) = take_slice(input, len + 2) else {
                        return self.wait(State::Pad { known, chosen, len });
                    };
                    known.ciphers.read.apply(&mut frame);
                    let said = frame.last_chunk().copied().unwrap_or_default();
                    self.state = State::Initial { known, chosen, len: u16::from_be_bytes(said).into() };
                }
                State::Initial { mut known, chosen, len } => {
                    let Some(mut initial) = take_slice(input, len) else {
                        return self.wait(State::Initial { known, chosen, len });
                    };
                    known.ciphers.read.apply(&mut initial);
                    self.choice(chosen, &mut known.ciphers, out);
                    let line = Line::after(chosen, known.ciphers, initial, input.split());
                    return Ok(Progress::Done { line, skey: known.skey });
                }
                State::Over => return Err(MseError::Over),
            }
        }
    }

    fn wait(&mut self, state: State) -> Result<Progress, MseError> {
        self.state = state;
        Ok(Progress::More)
    }

    /// What we chose, encrypted.
    fn choice(&self, chosen: u32, ciphers: &mut Ciphers, out: &mut Vec<u8>) {
        let sealed = out.len();
        out.extend(CHECK);
        out.extend(chosen.to_be_bytes());
        out.extend(self.pads.back.to_be_bytes());
        out.resize(out.len() + usize::from(self.pads.back), 0);
        ciphers.write.apply(&mut out[sealed..]);
    }
}
