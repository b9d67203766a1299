//! Both sides against each other, against bytes computed by other means, and against nonsense.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::prelude::*;

use super::*;
use crate::hash::sha1;
use crate::peer::wire::{Handshake, Reserved};

const SKEY: [u8; 20] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19];
const HELLO: &[u8] = b"from the dialler";
const ANSWER: &[u8] = b"from the dialled";

fn secrets() -> ([u8; SECRET], [u8; SECRET]) {
    let a = std::array::from_fn(|i| 0x81 + i as u8);
    let b = std::array::from_fn(|i| 0xf0 - 3 * i as u8);
    (a, b)
}

fn ours() -> [u8; Handshake::LEN] {
    let peer_id = *b"-XX0000-abcdefghijkl";
    Handshake { reserved: Reserved::new(), info_hash: SKEY, peer_id }.encode()
}

fn initiator(policy: Policy, pads: Pads) -> (Initiator, Vec<u8>) {
    Initiator::new(SKEY, policy, &ours(), secrets().0, pads)
}

fn responder(policy: Policy, pads: Pads) -> Responder {
    Responder::new(policy, secrets().1, pads)
}

/// Knows the one torrent.
fn known(name: &[u8; 20]) -> Option<[u8; 20]> {
    find(name, [&obscured(&SKEY)]).map(|_| SKEY)
}

fn unknown(_: &[u8; 20]) -> Option<[u8; 20]> {
    None
}

/// What became of one side.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Waits,
    Failed(MseError),
    /// The cover, and what it read behind the handshake.
    Done(Cover, Vec<u8>),
}

/// One side at work.
enum Side {
    Initiator(Initiator),
    Responder(Responder),
}

struct Party {
    side: Side,
    /// Read, and not understood yet.
    input: BytesMut,
    /// Under way to this side.
    wire: BytesMut,
    line: Option<Line>,
    end: End,
    /// What it says as soon as it may.
    says: &'static [u8],
}

impl Party {
    fn new(side: Side, says: &'static [u8]) -> Self {
        Self { side, input: BytesMut::new(), wire: BytesMut::new(), line: None, end: End::Waits, says }
    }

    /// Reads up to `most` of what is under way; what it says goes to `to`.
    fn turn(&mut self, most: usize, to: &mut BytesMut) {
        let came = self.wire.split_to(most.min(self.wire.len()));
        if let (Some(line), End::Done(_, read)) = (&mut self.line, &mut self.end) {
            let mut came = came;
            line.open(&mut came);
            read.extend_from_slice(&came);
            return;
        }
        self.input.unsplit(came);
        let mut out = Vec::new();
        let fed = match &mut self.side {
            Side::Initiator(side) => side.feed(&mut self.input, &mut out),
            Side::Responder(side) => side.feed(&mut self.input, &mut out, &known),
        };
        match fed {
            Ok(Progress::More) => {}
            Ok(Progress::Done { mut line, skey }) => {
                assert_eq!(skey, SKEY);
                assert!(self.input.is_empty(), "what came behind belongs to the session");
                let mut says = self.says.to_vec();
                line.seal(&mut says);
                out.extend(says);
                self.end = End::Done(line.cover(), line.early.split().to_vec());
                self.line = Some(line);
            }
            Err(error) => self.end = End::Failed(error),
        }
        to.extend_from_slice(&out);
    }
}

/// Lets both sides talk, `cut` saying how much of what is under way is read at once, until neither says more.
fn talk(side: (Initiator, Vec<u8>), other: Responder, mut cut: impl FnMut(usize) -> usize) -> (End, End) {
    let mut a = Party::new(Side::Initiator(side.0), HELLO);
    let mut b = Party::new(Side::Responder(other), ANSWER);
    b.wire.extend_from_slice(&side.1);
    while !a.wire.is_empty() || !b.wire.is_empty() {
        if !b.wire.is_empty() {
            b.turn(cut(b.wire.len()), &mut a.wire);
        }
        if !a.wire.is_empty() {
            a.turn(cut(a.wire.len()), &mut b.wire);
        }
        // Who failed reads no more.
        for party in [&mut a, &mut b] {
            if matches!(party.end, End::Failed(_)) {
                party.wire.clear();
            }
        }
    }
    (a.end, b.end)
}

/// What both have when all went well.
fn well(cover: Cover) -> (End, End) {
    (End::Done(cover, ANSWER.to_vec()), End::Done(cover, [&ours()[..], HELLO].concat()))
}

fn pads(front: usize, back: usize) -> Pads {
    Pads::new((0..front).map(|i| (i * 7 + 3) as u8).collect(), back)
}

#[test]
fn the_bytes_are_those_that_were_computed_by_other_means() {
    // By `tests/oracle.py`: SHA-1 of the three longer ones.
    let rows = [
        (
            Policy::Prefer,
            "bedb7cb532e83d218393cfba194825c9a0dedf05",
            "73247f7a4c815bfc8ec8b4118b713390c49721",
            "66726f6d20746865206469616c6c6572",
            "66726f6d20746865206469616c6c6564",
        ),
        (
            Policy::Require,
            "c2309746a63880a1e5c852f42e1482e589a7ffe8",
            "73247f7a4c815bfc8ec8b4128b713390c49721",
            "12a356ba01cdccb0b428f8efd6545bb4",
            "8a188b40df75a7bcd4783f14a1770dba",
        ),
    ];
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    for (policy, third, fourth, hello, answer) in rows {
        let (mut a, first) = initiator(policy, Pads::new(b"front of a".to_vec(), 3));
        let mut b = responder(policy, Pads::new(b"front of b..".to_vec(), 5));
        assert_eq!(hex(&sha1(&first)), "a2450bbaa93b5265641aba6430608467e01163fa");
        let (mut to_a, mut to_b) = (Vec::new(), Vec::new());
        assert!(matches!(b.feed(&mut BytesMut::from(&first[..]), &mut to_a, &known), Ok(Progress::More)));
        assert_eq!(hex(&sha1(&to_a)), "69db864ba4ef71000941c8bb061001dff58f2b63");
        let mut input = BytesMut::from(&to_a[..]);
        assert!(!a.answered());
        assert!(matches!(a.feed(&mut input, &mut to_b), Ok(Progress::More)));
        assert!(a.answered());
        assert_eq!(hex(&sha1(&to_b)), third);
        to_a.clear();
        let mut unread = BytesMut::from(&first[KEY..]);
        unread.extend_from_slice(&to_b);
        let done = b.feed(&mut unread, &mut to_a, &known);
        let Ok(Progress::Done { line: mut line_b, .. }) = done else { panic!("{done:?}") };
        assert_eq!(hex(&to_a), fourth);
        input.extend_from_slice(&to_a);
        let done = a.feed(&mut input, &mut Vec::new());
        let Ok(Progress::Done { line: mut line_a, .. }) = done else { panic!("{done:?}") };
        let (mut says, mut answers) = (HELLO.to_vec(), ANSWER.to_vec());
        line_a.seal(&mut says);
        line_b.seal(&mut answers);
        assert_eq!((hex(&says).as_str(), hex(&answers).as_str()), (hello, answer));
    }
    assert_eq!(hex(&obscured(&SKEY)), "4321b2c3fbde0a4fa12ca762484f5b8dc9cf4b5f");
}

#[test]
fn policies_meet() {
    let rows = [
        (Policy::Prefer, Policy::Prefer, well(Cover::Handshake)),
        (Policy::Prefer, Policy::Require, well(Cover::Full)),
        (Policy::Require, Policy::Prefer, well(Cover::Full)),
        (Policy::Require, Policy::Require, well(Cover::Full)),
        (Policy::Prefer, Policy::Off, (End::Waits, End::Failed(MseError::NoCommonWay(3)))),
        (Policy::Require, Policy::Off, (End::Waits, End::Failed(MseError::NoCommonWay(2)))),
        // Nobody who has it off begins like this; if he did, it would be for nothing.
        (Policy::Off, Policy::Prefer, (End::Waits, End::Failed(MseError::NoCommonWay(0)))),
        (Policy::Off, Policy::Require, (End::Waits, End::Failed(MseError::NoCommonWay(0)))),
        (Policy::Off, Policy::Off, (End::Waits, End::Failed(MseError::NoCommonWay(0)))),
    ];
    for (dials, answers, want) in rows {
        let got = talk(initiator(dials, pads(9, 1)), responder(answers, pads(4, 2)), |all| all);
        assert_eq!(got, want, "{dials:?} dials {answers:?}");
    }
}

#[test]
fn what_is_offered_is_chosen_from() {
    use MseError::NoCommonWay;
    for (policy, offered, want) in [
        (Policy::Prefer, 3, Ok(1)),
        (Policy::Prefer, 2, Ok(2)),
        (Policy::Prefer, 1, Ok(1)),
        (Policy::Prefer, 0xffff_ffff, Ok(1)),
        (Policy::Prefer, 4, Err(NoCommonWay(4))),
        (Policy::Require, 3, Ok(2)),
        (Policy::Require, 1, Err(NoCommonWay(1))),
        (Policy::Require, 0, Err(NoCommonWay(0))),
        (Policy::Off, 3, Err(NoCommonWay(3))),
    ] {
        assert_eq!(policy.choose(offered), want, "{policy:?} of {offered:#x}");
    }
}

#[test]
fn beginnings_are_told_apart() {
    use Opening::{Other, Plain, Unclear};
    for len in 0..PROTOCOL.len() {
        assert_eq!(Opening::of(&PROTOCOL[..len]), Unclear, "{len}");
        let mut other = PROTOCOL[..=len].to_vec();
        other[len] ^= 1;
        assert_eq!(Opening::of(&other), Other, "a key that begins like the protocol, {len}");
    }
    assert_eq!(Opening::of(&ours()), Plain);
    for (policy, opening, want) in [
        (Policy::Off, Plain, Ok(())),
        (Policy::Off, Other, Err(MseError::NotPlain)),
        (Policy::Prefer, Plain, Ok(())),
        (Policy::Prefer, Other, Ok(())),
        (Policy::Require, Plain, Err(MseError::PlainRefused)),
        (Policy::Require, Other, Ok(())),
        (Policy::Require, Unclear, Ok(())),
    ] {
        assert_eq!(policy.takes(opening), want, "{policy:?} {opening:?}");
    }
}

#[test]
fn a_byte_at_a_time() {
    for policy in [Policy::Prefer, Policy::Require] {
        let want = well(if policy == Policy::Require { Cover::Full } else { Cover::Handshake });
        for (a, b) in [(pads(0, 0), pads(0, 0)), (pads(512, 512), pads(512, 512)), (pads(1, 0), pads(0, 511))]
        {
            assert_eq!(talk(initiator(policy, a), responder(policy, b), |_| 1), want);
        }
    }
}

#[test]
fn another_torrent_is_told_by_its_name_alone() {
    let mut b = responder(Policy::Prefer, pads(3, 3));
    let (mut a, first) = initiator(Policy::Prefer, pads(3, 3));
    let (mut to_a, mut to_b) = (Vec::new(), Vec::new());
    let mut input = BytesMut::from(&first[..]);
    b.feed(&mut input, &mut to_a, &unknown).unwrap();
    a.feed(&mut BytesMut::from(&to_a[..]), &mut to_b).unwrap();
    to_a.clear();
    input.extend_from_slice(&to_b);
    assert_eq!(b.feed(&mut input, &mut to_a, &unknown).unwrap_err(), MseError::UnknownTorrent);
    assert!(to_a.is_empty(), "who asks for what isn't here learns nothing more");
    assert_eq!(b.feed(&mut input, &mut to_a, &known).unwrap_err(), MseError::Over);
}

#[test]
fn one_is_found_among_many() {
    let all: Vec<[u8; 20]> = (0..5000u32).map(|i| obscured(&sha1(&i.to_be_bytes()))).collect();
    assert_eq!(find(&obscured(&sha1(&4321u32.to_be_bytes())), &all), Some(4321));
    assert_eq!(find(&obscured(&SKEY), &all), None);
    assert_eq!(find(&[0; 20], &[]), None);
}

/// A dialler by hand, for what ours never does.
struct Forged {
    shared: [u8; KEY],
    ciphers: Ciphers,
    first: Vec<u8>,
}

impl Forged {
    fn new() -> Self {
        let (a, b) = (dh::Keys::new(secrets().0), dh::Keys::new(secrets().1));
        let shared = a.share(b.public()).unwrap();
        Self { shared, ciphers: Ciphers::new(&shared, &SKEY), first: a.public().to_vec() }
    }

    /// Key, padding, mark and torrent.
    fn opening(&self, pad: usize) -> Vec<u8> {
        let mark = digest(&[b"req1", &self.shared]);
        [&self.first[..], &vec![0x55; pad], &mark, &mask(&self.shared, obscured(&SKEY))].concat()
    }

    fn sealed(&mut self, parts: &[&[u8]]) -> Vec<u8> {
        let mut bytes = parts.concat();
        self.ciphers.write.apply(&mut bytes);
        bytes
    }

    /// Has a side that we answer with read all of this at once.
    fn feed(policy: Policy, all: &[u8]) -> Result<Progress, MseError> {
        responder(policy, pads(0, 0)).feed(&mut BytesMut::from(all), &mut Vec::new(), &known)
    }
}

#[test]
fn padding_ends_where_it_must() {
    for (pad, want) in [(0, None), (512, None), (513, Some(MseError::NoMark)), (5000, Some(MseError::NoMark))]
    {
        let mut forged = Forged::new();
        let mut all = forged.opening(pad);
        all.extend(forged.sealed(&[&CHECK, &[0, 0, 0, 3], &[0, 0], &[0, 0]]));
        assert_eq!(Forged::feed(Policy::Prefer, &all).err(), want, "{pad} bytes of padding");
    }
    // As soon as it can be known, and no sooner.
    let forged = Forged::new();
    let garbage = [&forged.first[..], &[7; PAD_MAX + 20]].concat();
    assert!(matches!(Forged::feed(Policy::Prefer, &garbage[..garbage.len() - 1]), Ok(Progress::More)));
    assert_eq!(Forged::feed(Policy::Prefer, &garbage).unwrap_err(), MseError::NoMark);
}

#[test]
fn offers_are_checked() {
    let rows: [(&[&[u8]], Option<MseError>); 6] = [
        (&[&CHECK, &[0, 0, 0, 2], &[2, 0], &[0; 512], &[0, 0]], None),
        (&[&CHECK, &[0, 0, 0, 2], &[2, 1], &[0; 513], &[0, 0]], Some(MseError::PadTooLong(513))),
        (&[&CHECK, &[0, 0, 0, 2], &[0xff, 0xff]], Some(MseError::PadTooLong(0xffff))),
        (&[&[0, 0, 0, 0, 0, 0, 0, 1], &[0, 0, 0, 2], &[0, 0], &[0, 0]], Some(MseError::Unreadable)),
        (&[&CHECK, &[0, 0, 0, 1], &[0, 0], &[0, 0]], Some(MseError::NoCommonWay(1))),
        (&[&CHECK, &[0, 0, 0, 0], &[0, 0], &[0, 0]], Some(MseError::NoCommonWay(0))),
    ];
    for (offer, want) in rows {
        let mut forged = Forged::new();
        let all = [forged.opening(1), forged.sealed(offer)].concat();
        assert_eq!(Forged::feed(Policy::Require, &all).err(), want, "{offer:?}");
    }
}

#[test]
fn what_is_said_at_once_may_be_nothing_or_much_and_more_may_follow() {
    for (len, policy) in
        [(0, Policy::Prefer), (68, Policy::Require), (65_535, Policy::Prefer), (65_535, Policy::Require)]
    {
        let mut forged = Forged::new();
        let said: Vec<u8> = (0..len).map(|i| i as u8).collect();
        let mut all = forged.opening(0);
        let announced = (len as u16).to_be_bytes();
        all.extend(forged.sealed(&[&CHECK, &[0, 0, 0, 3], &[0, 0], &announced, &said]));
        assert!(all.len() <= MOST_INPUT);
        all.extend(match policy {
            Policy::Require => forged.sealed(&[HELLO]),
            _ => HELLO.to_vec(),
        });
        let done = Forged::feed(policy, &all);
        let Ok(Progress::Done { line, .. }) = done else { panic!("{done:?}") };
        assert_eq!(line.early, [&said[..], HELLO].concat());
    }
}

/// What ours dials with, and what comes back from a side by hand: its key and what it seals.
fn answered(policy: Policy, parts: &[&[u8]]) -> (Initiator, BytesMut) {
    let (a, _) = initiator(policy, pads(0, 0));
    let mut forged = Forged::new();
    forged.ciphers = forged.ciphers.turned();
    let answer = forged.sealed(parts);
    (a, BytesMut::from(&[&dh::Keys::new(secrets().1).public()[..], &answer].concat()[..]))
}

#[test]
fn choices_are_checked() {
    for (policy, choice, want) in [
        (Policy::Prefer, 1, None),
        (Policy::Prefer, 2, None),
        (Policy::Prefer, 0, Some(MseError::BadChoice(0))),
        (Policy::Prefer, 3, Some(MseError::BadChoice(3))),
        (Policy::Prefer, 4, Some(MseError::BadChoice(4))),
        (Policy::Prefer, 6, Some(MseError::BadChoice(6))),
        (Policy::Require, 2, None),
        (Policy::Require, 1, Some(MseError::BadChoice(1))),
    ] {
        let (mut a, mut input) = answered(policy, &[&CHECK, &u32::to_be_bytes(choice), &[0, 0]]);
        assert_eq!(a.feed(&mut input, &mut Vec::new()).err(), want, "{policy:?}, {choice}");
    }
    let (mut a, mut input) = answered(Policy::Prefer, &[&CHECK, &[0, 0, 0, 1], &[2, 1]]);
    assert_eq!(a.feed(&mut input, &mut Vec::new()).unwrap_err(), MseError::PadTooLong(513));
    // Nothing but padding.
    let (mut a, mut input) = answered(Policy::Prefer, &[]);
    input.extend_from_slice(&[0x55; PAD_MAX + 8 - 1]);
    assert!(matches!(a.feed(&mut input, &mut Vec::new()), Ok(Progress::More)));
    input.extend_from_slice(&[0x55]);
    assert_eq!(a.feed(&mut input, &mut Vec::new()).unwrap_err(), MseError::NoMark);
}

#[test]
fn who_answers_plainly_is_known_at_once() {
    let (mut a, _) = initiator(Policy::Prefer, pads(100, 0));
    let mut input = BytesMut::from(&PROTOCOL[..19]);
    assert!(matches!(a.feed(&mut input, &mut Vec::new()), Ok(Progress::More)));
    input.extend_from_slice(&PROTOCOL[19..]);
    assert_eq!(a.feed(&mut input, &mut Vec::new()).unwrap_err(), MseError::SpeaksPlain);
}

#[test]
fn keys_that_are_none_are_refused() {
    let (mut a, first) = initiator(Policy::Prefer, pads(0, 0));
    let mut out = Vec::new();
    // An echo.
    assert_eq!(a.feed(&mut BytesMut::from(&first[..]), &mut out).unwrap_err(), MseError::BadKey);
    for key in [[0; KEY], [0xff; KEY]] {
        assert_eq!(Forged::feed(Policy::Prefer, &key).unwrap_err(), MseError::BadKey);
        let (mut a, _) = initiator(Policy::Prefer, pads(0, 0));
        assert_eq!(a.feed(&mut BytesMut::from(&key[..]), &mut out).unwrap_err(), MseError::BadKey);
    }
    assert!(out.is_empty(), "nothing is said to who has no key");
}

/// Feeds a side in parts until it ends, and says after how many bytes it did.
fn until_the_end(
    all: &[u8],
    cut: usize,
    mut feed: impl FnMut(&mut BytesMut) -> Result<Progress, MseError>,
) -> Option<usize> {
    let mut input = BytesMut::new();
    for (part, bytes) in all.chunks(cut).enumerate() {
        input.extend_from_slice(bytes);
        match feed(&mut input) {
            Ok(Progress::More) => assert!(input.len() <= MOST_INPUT),
            _ => return Some(part * cut + bytes.len()),
        }
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn any_cut_and_any_padding(
        fronts in (0usize..=512, 0usize..=512),
        backs in (0usize..=512, 0usize..=512),
        policies in prop::sample::select(vec![(Policy::Prefer, Policy::Prefer), (Policy::Require, Policy::Prefer), (Policy::Prefer, Policy::Require)]),
        cuts in prop::collection::vec(1usize..700, 1..40),
        secrets in (prop::array::uniform20(any::<u8>()), prop::array::uniform20(any::<u8>())),
    ) {
        prop_assume!(secrets.0 != secrets.1);
        let a = Initiator::new(SKEY, policies.0, &ours(), secrets.0, pads(fronts.0, backs.0));
        let b = Responder::new(policies.1, secrets.1, pads(fronts.1, backs.1));
        let mut cuts = cuts.into_iter().cycle();
        let cover = if policies == (Policy::Prefer, Policy::Prefer) { Cover::Handshake } else { Cover::Full };
        prop_assert_eq!(talk(a, b, |_| cuts.next().unwrap()), well(cover));
    }

    #[test]
    fn garbage_ends_it(seed in prop::array::uniform32(any::<u8>()), len in 0usize..1400, cut in 1usize..200) {
        let garbage: Vec<u8> = (0..len).map(|i| {
            let hash = sha1(&[&seed[..], &(i as u32 / 20).to_be_bytes()].concat());
            hash[i % 20]
        }).collect();
        let mut b = responder(Policy::Prefer, pads(0, 0));
        let mut out = Vec::new();
        let ended = until_the_end(&garbage, cut, |input| b.feed(input, &mut out, &known));
        let bound = KEY + PAD_MAX + 20;
        prop_assert!(ended.is_some() == (len >= bound) || ended.is_some_and(|at| at < bound));
        prop_assert!(ended.is_none_or(|at| at < bound + cut));
        prop_assert!(out.len() <= KEY);
        let (mut a, _) = initiator(Policy::Prefer, pads(0, 0));
        let bound = KEY + PAD_MAX + 8;
        let ended = until_the_end(&garbage, cut, |input| a.feed(input, &mut out));
        prop_assert!(ended.is_some() == (len >= bound) || ended.is_some_and(|at| at < bound));
        prop_assert!(ended.is_none_or(|at| at < bound + cut));
    }

    #[test]
    fn an_offer_that_was_changed_leads_to_no_other_torrent(at in 0usize..400, change in 1u8.., cut in 1usize..300) {
        let mut forged = Forged::new();
        let mut all = forged.opening(30);
        all.extend(forged.sealed(&[&CHECK, &[0, 0, 0, 2], &[0, 100], &[0; 100], &[0, 68], &ours()]));
        if let Some(byte) = all.get_mut(at) {
            *byte ^= change;
        }
        let mut b = responder(Policy::Require, pads(0, 0));
        let mut done = None;
        until_the_end(&all, cut, |input| {
            let fed = b.feed(input, &mut Vec::new(), &known);
            if let Ok(Progress::Done { skey, line }) = &fed {
                done = Some((*skey, line.cover()));
            }
            fed
        });
        prop_assert!(done.is_none_or(|done| done == (SKEY, Cover::Full)));
    }

    #[test]
    fn an_answer_that_was_changed_ends_it(at in 0usize..240, change in 1u8.., cut in 1usize..300) {
        let parts: [&[u8]; 4] = [&CHECK, &[0, 0, 0, 2], &[0, 100], &[0; 100]];
        let (mut a, mut input) = answered(Policy::Require, &parts);
        if let Some(byte) = input.get_mut(at) {
            *byte ^= change;
        }
        let all = input.split();
        let mut cover = None;
        until_the_end(&all, cut, |input| {
            let fed = a.feed(input, &mut Vec::new());
            if let Ok(Progress::Done { line, .. }) = &fed {
                cover = Some(line.cover());
            }
            fed
        });
        prop_assert!(cover.is_none_or(|cover| cover == Cover::Full));
    }
}
