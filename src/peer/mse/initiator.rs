//! The handshake of who dials.

use bytes::BytesMut;

use super::dh::{KEY, Keys, SECRET};
use super::{
    CHECK, Ciphers, Line, MseError, Opening, Pads, Policy, Progress, digest, mask, obscured, pad_len,
    skip_to, take, take_slice,
};
use crate::peer::wire::Handshake;

/// See the module's text. Made with what is to be sent first; fed with what comes until it is over.
pub struct Initiator {
    skey: [u8; 20],
    policy: Policy,
    /// What is said at once, behind the offer: our BitTorrent handshake, which saves a round trip.
    initial: Vec<u8>,
    pad: u16,
    keys: Keys,
    state: State,
}

enum State {
    /// The other's key is to come.
    Key,
    /// Padding, up to the check.
    Check {
        mark: [u8; 8],
        ciphers: Ciphers,
    },
    /// The choice, and how long the padding behind it is.
    Choice {
        ciphers: Ciphers,
    },
    /// That padding.
    Pad {
        ciphers: Ciphers,
        chosen: u32,
        len: usize,
    },
    Over,
}

impl Initiator {
    /// Begins, for the torrent with these 20 bytes. Also what to send first. `secret` is random, and for one connection only.
    pub fn new(
        skey: [u8; 20],
        policy: Policy,
        ours: &[u8; Handshake::LEN],
        secret: [u8; SECRET],
        pads: Pads,
    ) -> (Self, Vec<u8>) {
        let keys = Keys::new(secret);
        let first = [keys.public(), &pads.front[..]].concat();
        (Self { skey, policy, initial: ours.to_vec(), pad: pads.back, keys, state: State::Key }, first)
    }

    /// Whether the other side has shown a key: then another try without encryption isn't worth it.
    pub fn answered(&self) -> bool {
        !matches!(self.state, State::Key)
    }

    /// Takes what has come off `input`, as far as it can be understood, and appends to `out` what is to be sent.
    ///
    /// # Errors
    /// See [`MseError`]. It is over then.
    pub fn feed(&mut self, input: &mut BytesMut, out: &mut Vec<u8>) -> Result<Progress, MseError> {
        loop {
            match std::mem::replace(&mut self.state, State::Over) {
                State::Key => {
                    // Before a key is whole: such a peer waits for us, and would for ever.
                    if Opening::of(input) == Opening::Plain {
                        return Err(MseError::SpeaksPlain);
                    }
                    let Some(theirs) = take::<KEY>(input) else { return self.wait(State::Key) };
                    let shared = self.keys.share(&theirs).ok_or(MseError::BadKey)?;
                    let mut ciphers = Ciphers::new(&shared, &self.skey);
                    self.offer(&shared, &mut ciphers, out);
                    let mut mark = CHECK;
                    ciphers.read.apply(&mut mark);
                    self.state = State::Check { mark, ciphers };
                }
                State::Check { mark, ciphers } => {
                    if !skip_to(&mark, input)? {
                        return self.wait(State::Check { mark, ciphers });
                    }
                    self.state = State::Choice { ciphers };
                }
                State::Choice { mut ciphers } => {
                    let Some(mut frame) = take::<6>(input) else {
                        return self.wait(State::Choice { ciphers });
                    };
                    ciphers.read.apply(&mut frame);
                    let [a, b, c, d, len @ ..] = frame;
                    let chosen = u32::from_be_bytes([a, b, c, d]);
                    if chosen.count_ones() != 1 || chosen & self.policy.offers() == 0 {
                        return Err(MseError::BadChoice(chosen));
                    }
                    self.state = State::Pad { ciphers, chosen, len: pad_len(len)? };
                }
                State::Pad { mut ciphers, chosen, len } => {
                    let Some(mut pad) = take_slice(input, len) else {
                        return self.wait(State::Pad { ciphers, chosen, len });
                    };
                    ciphers.read.apply(&mut pad);
                    let line = Line::after(chosen, ciphers, BytesMut::new(), input.split());
                    return Ok(Progress::Done { line, skey: self.skey });
                }
                State::Over => return Err(MseError::Over),
            }
        }
    }

    fn wait(&mut self, state: State) -> Result<Progress, MseError> {
        self.state = state;
        Ok(Progress::More)
    }

    /// The mark, the torrent, and the rest encrypted.
    fn offer(&self, shared: &[u8; KEY], ciphers: &mut Ciphers, out: &mut Vec<u8>) {
        out.extend(digest(&[b"req1", shared]));
        out.extend(mask(shared, obscured(&self.skey)));
        let sealed = out.len();
        out.extend(CHECK);
        out.extend(self.policy.offers().to_be_bytes());
        out.extend(self.pad.to_be_bytes());
        out.resize(out.len() + usize::from(self.pad), 0);
        out.extend((self.initial.len() as u16).to_be_bytes());
        out.extend(&self.initial);
        ciphers.write.apply(&mut out[sealed..]);
    }
}
