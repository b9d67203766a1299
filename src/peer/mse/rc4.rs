//! RC4 as message stream encryption wants it: the first 1,024 bytes of the keystream are thrown away. Pure.
//!
//! By hand, since it is forty lines; the tests hold it against the `rc4` crate. It hides what is said from who only looks,
//! and protects nothing: see [`super`]. Its lookups depend on the key, so whoever shares the processor's cache may learn it.

/// Bytes of keystream that are thrown away, so that its weak beginning isn't used.
const DROPPED: usize = 1024;

/// One direction's keystream, and how much of it is used up.
#[cfg_attr(test, derive(Clone))]
pub struct Rc4 {
    state: [u8; 256],
    i: u8,
    j: u8,
}

impl Rc4 {
    /// The keystream of this key, after what is thrown away. Of an empty key it is of no use, but there is one.
    pub fn new(key: &[u8]) -> Self {
        let mut state = [0; 256];
        for (value, slot) in (0..=u8::MAX).zip(&mut state) {
            *slot = value;
        }
        let mut j = 0u8;
        for (i, key) in (0..=u8::MAX).zip(key.iter().cycle()) {
            j = j.wrapping_add(state[usize::from(i)]).wrapping_add(*key);
            state.swap(usize::from(i), usize::from(j));
        }
        let mut cipher = Self { state, i: 0, j: 0 };
        cipher.apply(&mut [0; DROPPED]);
        cipher
    }

    /// Encrypts or decrypts the next bytes in place: the same step. Each byte of the stream goes through it once.
    pub fn apply(&mut self, bytes: &mut [u8]) {
        let (state, mut i, mut j) = (&mut self.state, self.i, self.j);
        for byte in bytes {
            i = i.wrapping_add(1);
            let a = state[usize::from(i)];
            j = j.wrapping_add(a);
            let b = state[usize::from(j)];
            state[usize::from(i)] = b;
            state[usize::from(j)] = a;
            *byte ^= state[usize::from(a.wrapping_add(b))];
        }
        (self.i, self.j) = (i, j);
    }
}

/// Nothing of the key.
impl std::fmt::Debug for Rc4 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rc4").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;
    use rc4::{KeyInit, StreamCipher};

    use super::*;

    #[test]
    fn known_answers() {
        // RFC 6229, the keystream from byte 1,024 on.
        let rows: [(&[u8], [u8; 16]); 2] = [
            (
                &[1, 2, 3, 4, 5],
                [
                    0x30, 0xab, 0xbc, 0xc7, 0xc2, 0x0b, 0x01, 0x60, 0x9f, 0x23, 0xee, 0x2d, 0x5f, 0x6b, 0xb7,
                    0xdf,
                ],
            ),
            (
                &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16],
                [
                    0xbd, 0xf0, 0x32, 0x4e, 0x60, 0x83, 0xdc, 0xc6, 0xd3, 0xce, 0xdd, 0x3c, 0xa8, 0xc5, 0x3c,
                    0x16,
                ],
            ),
        ];
        for (key, want) in rows {
            let mut bytes = [0; 16];
            Rc4::new(key).apply(&mut bytes);
            assert_eq!(bytes, want, "{key:?}");
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_oracle(
            key in prop::array::uniform20(any::<u8>()),
            data in prop::collection::vec(any::<u8>(), 0..3000),
            cuts in prop::collection::vec(0usize..3000, 0..5),
        ) {
            let mut oracle = rc4::Rc4::new_from_slice(&key).unwrap();
            oracle.apply_keystream(&mut [0; DROPPED]);
            let mut want = data.clone();
            oracle.apply_keystream(&mut want);
            let mut ours = Rc4::new(&key);
            let mut got = data.clone();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(data.len())).collect();
            cuts.sort_unstable();
            let mut from = 0;
            for to in cuts.into_iter().chain([data.len()]) {
                ours.apply(&mut got[from..to]);
                from = to;
            }
            prop_assert_eq!(&got, &want);
            Rc4::new(&key).apply(&mut got);
            prop_assert_eq!(got, data, "twice is not at all");
        }
    }
}
